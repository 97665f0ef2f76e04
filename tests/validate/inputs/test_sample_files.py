"""Samples come from files as they were written, and whatever a file can get wrong is one clear ``InputError``."""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from coreflow.export.package.graph import Feature, Interface
from coreflow.models.data.tokenizers import TextTokenizer, train_wordpiece
from coreflow.models.errors import InputError
from coreflow.models.spec import TensorSpec
from coreflow.validate.inputs.sample_files import read_samples

X = TensorSpec((2, 3))
IDS = TensorSpec((1, 8), "int32", (0, 999))
MASK = TensorSpec((1, 8), bounds=(0, 1))
PICTURE = TensorSpec((1, 3, 4, 6), "float32", (0, 1))
BOTH = {"x": X, "ids": IDS}
GOOD = {"x": np.arange(6, dtype=np.float32).reshape(2, 3) / 8, "ids": np.arange(8).reshape(1, 8)}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_wordpiece(["the sun rises over the sea", "a river runs to the sea", "the moon is over the hill"], 90)


def write_npz(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def write_safetensors(path: Path, arrays: dict[str, Any]) -> Path:
    save_file({name: torch.tensor(np.asarray(array)) for name, array in arrays.items()}, path)
    return path


def write_jsonl(path: Path, arrays: dict[str, Any]) -> Path:
    path.write_text(json.dumps({name: np.asarray(array).tolist() for name, array in arrays.items()}) + "\n")
    return path


WRITERS: dict[str, Callable[[Path, dict[str, Any]], Path]] = {"npz": write_npz, "safetensors": write_safetensors, "jsonl": write_jsonl}


class TestArrays:
    @pytest.mark.parametrize("suffix", WRITERS)
    def test_an_array_for_every_input_is_one_sample_in_the_dtypes_and_the_order_of_the_inputs(self, suffix: str, tmp_path: Path) -> None:
        swapped = {name: GOOD[name] for name in reversed(GOOD)}
        (sample,) = read_samples(WRITERS[suffix](tmp_path / f"a.{suffix}", swapped), BOTH)
        assert list(sample.inputs) == ["x", "ids"] and sample.label.startswith(f"a.{suffix}")
        assert (sample.inputs["x"].dtype, sample.inputs["ids"].dtype) == (np.dtype(np.float16), np.dtype(np.int32))
        for name in BOTH:
            np.testing.assert_array_equal(sample.inputs[name], GOOD[name])
        assert sample.seed is None and sample.expected is None

    @pytest.mark.parametrize("suffix", ["npz", "safetensors"])
    def test_a_leading_axis_counts_samples(self, suffix: str, tmp_path: Path) -> None:
        stacked = {name: np.stack([array, array + 1]) for name, array in GOOD.items()}
        samples = read_samples(WRITERS[suffix](tmp_path / f"a.{suffix}", stacked), BOTH)
        assert [sample.label for sample in samples] == [f"a.{suffix}[0]", f"a.{suffix}[1]"]
        np.testing.assert_array_equal(samples[1].inputs["ids"], GOOD["ids"] + 1)

    def test_every_line_is_a_sample_and_blank_ones_are_none(self, tmp_path: Path) -> None:
        line = write_jsonl(tmp_path / "a.jsonl", GOOD).read_text()
        (tmp_path / "a.jsonl").write_text(f"\ufeff{line}\n  \n{line}", encoding="utf-8")
        assert [sample.label for sample in read_samples(tmp_path / "a.jsonl", BOTH)] == ["a.jsonl line 1", "a.jsonl line 4"]

    def test_a_folder_is_read_in_the_order_of_its_names(self, tmp_path: Path) -> None:
        for name in ("b.npz", "a.npz"):
            write_npz(tmp_path / name, GOOD)
        (tmp_path / ".hidden").write_text("left out")
        assert [sample.label for sample in read_samples(tmp_path, BOTH)] == ["a.npz", "b.npz"]

    def test_bfloat16_is_read_as_the_numbers_it_holds(self, tmp_path: Path) -> None:
        values = torch.tensor([[1.0078125, -3.5, 2.0**-20]] * 2, dtype=torch.bfloat16)
        save_file({"x": values}, tmp_path / "a.safetensors")
        (sample,) = read_samples(tmp_path / "a.safetensors", {"x": TensorSpec((2, 3), "float32")})
        np.testing.assert_array_equal(sample.inputs["x"], values.float().numpy())

    def test_other_shapes_are_taken_where_the_interface_has_them(self, tmp_path: Path) -> None:
        open_length = Interface((Feature("x", "array", "float16", (2, 3), ranges=((1, 4), (3, 3))),), (), ())
        path = write_npz(tmp_path / "a.npz", {"x": np.zeros((4, 3))})
        assert read_samples(path, {"x": X}, interface=open_length)[0].inputs["x"].shape == (4, 3)
        with pytest.raises(InputError, match=r"expected shape \[2, 3\], got \[4, 3\]"):
            read_samples(path, {"x": X})


def changed(**arrays: Any) -> dict[str, Any]:
    return {name: array for name, array in {**GOOD, **arrays}.items() if array is not None}


BAD = {
    "an input is missing": (changed(ids=None), "gives 'x'; one value for each input is right: x float16"),
    "a name is not an input's": (changed(y=GOOD["x"]), "'y'; one value for each input"),
    "another shape": (changed(x=np.zeros((3, 2))), r"expected shape \[2, 3\], got \[3, 2\]"),
    "floats for ids": (changed(ids=GOOD["ids"] + 0.5), "'ids': expected int32, got float64"),
    "NaN": (changed(x=np.full((2, 3), np.nan)), r"'x' holds nan at \[0, 0\]"),
    "beyond fp16": (changed(x=np.full((2, 3), 7e4)), r"'x' holds 70000 .*65504"),
    "an id outside the vocabulary": (changed(ids=GOOD["ids"] + 995), r"holds 1000 at \[0, 5\]; 0 to 999 is right"),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("problem", BAD)
def test_values_that_are_no_inputs_are_refused_with_the_file(problem: str, suffix: str, tmp_path: Path) -> None:
    arrays, said = BAD[problem]
    with pytest.raises(InputError, match=rf"^bad\.{suffix}.*{said}"):
        read_samples(WRITERS[suffix](tmp_path / f"bad.{suffix}", arrays), BOTH)


@pytest.mark.parametrize("problem", BAD)
def test_the_bad_one_of_several_samples_is_named(problem: str, tmp_path: Path) -> None:
    arrays, said = BAD[problem]
    lines = [json.dumps({name: np.asarray(array).tolist() for name, array in arrays_of_line.items()}) for arrays_of_line in (GOOD, arrays)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"^bad\.jsonl line 2\b.*{said}"):
        read_samples(tmp_path / "bad.jsonl", BOTH)


def test_some_arrays_with_a_leading_axis_and_some_without_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="either every array has a leading axis of samples, or none"):
        read_samples(write_npz(tmp_path / "a.npz", changed(x=np.zeros((2, 2, 3)))), BOTH)
    uneven = {"x": np.zeros((2, 2, 3)), "ids": np.zeros((3, 1, 8), int)}
    with pytest.raises(InputError, match="the same for all"):
        read_samples(write_npz(tmp_path / "a.npz", uneven), BOTH)


class Bomb:
    """Warns when it is unpickled, and a warning is an error."""

    def __reduce__(self) -> Any:
        return (warnings.warn, ("unpickled",))


def pickled_member() -> bytes:
    array = io.BytesIO()
    np.lib.format.write_array(array, np.array([Bomb()], object))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", array.getvalue())
    return buffer.getvalue()


def saved() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=GOOD["x"], ids=GOOD["ids"])
    return buffer.getvalue()


def huge_header() -> bytes:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", member.getvalue())
    return buffer.getvalue()


BROKEN = {
    "pickled array": ("a.npz", pickled_member(), "'x' holds Python objects, which are not unpickled"),
    "pickle under another name": ("a.npz", pickle.dumps(Bomb()), "is no .npz"),
    "cut .npz": ("a.npz", saved()[:-40], "is no .npz, or was cut short"),
    "damaged .npz": ("a.npz", saved().replace(b"\x93NUMPY", b"\x00NUMPY"), "cannot be read|is no array"),
    "absurd size": ("a.npz", huge_header(), "cannot be read"),
    "cut .safetensors": ("a.safetensors", b"\x40\0\0\0\0\0\0\0{}", "no safetensors file, or was cut short"),
    "empty .safetensors": ("a.safetensors", b"", "no safetensors file"),
    "no JSON": ("a.jsonl", b"{'x': 1}", "line 1 is no JSON"),
    "a list": ("a.jsonl", b"[1, 2]", "line 1 is a list; an object"),
    "ragged lists": ("a.jsonl", b'{"x": [[1], [1, 2]], "ids": [[0]]}', "line 1, input 'x' is no array"),
    "words": ("a.jsonl", b'{"x": [["one"]], "ids": [[0]]}', "line 1, input 'x' does not hold numbers alone"),
    "endless nesting": ("a.jsonl", b'{"x": ' + b"[" * 200_000, "line 1 is no JSON"),
    "no UTF-8": ("a.txt", b"caf\xe9", "is no UTF-8 text"),
    "blank lines": ("a.txt", b"\n \n", "holds no sample"),
    "text as a picture": ("a.png", b"not a picture", "is no PNG or JPEG picture"),
    "another kind": ("a.csv", b"1,2,3", "samples are read from files of .npz"),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_file_that_cannot_be_read_is_named(problem: str, tmp_path: Path) -> None:
    name, content, said = BROKEN[problem]
    (tmp_path / name).write_bytes(content)
    specs = {"image": PICTURE} if name.endswith("png") else BOTH
    with pytest.raises(InputError, match=said) as caught:
        read_samples(tmp_path / name, specs)
    assert name in str(caught.value)


def test_nothing_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_samples(tmp_path / "none.npz", BOTH)
    with pytest.raises(InputError, match=r"holds no sample; files of \.npz"):
        read_samples(tmp_path, BOTH)


TEXT = {"ids": IDS, "mask": MASK}


class TestTexts:
    @pytest.mark.parametrize("form", ["txt", "jsonl"])
    def test_a_text_becomes_the_ids_and_the_mask_of_the_tokenizer(self, form: str, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        texts = ["the sun", "a river runs"]
        lines = texts if form == "txt" else [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"a.{form}").write_text("\n".join(lines))
        samples = read_samples(tmp_path / f"a.{form}", TEXT, tokenizer)
        for sample, text in zip(samples, texts, strict=True):
            encoded = tokenizer.encode(text, 8)
            np.testing.assert_array_equal(sample.inputs["ids"], encoded.ids[None])
            np.testing.assert_array_equal(sample.inputs["mask"], encoded.mask[None])

    def test_an_additive_mask_is_0_on_tokens_and_low_on_padding(self, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        specs = {"input_ids": IDS, "attention_mask": TensorSpec((1, 1, 1, 8), bounds=(-1e4, 0))}
        (tmp_path / "a.txt").write_text("the sun")
        (sample,) = read_samples(tmp_path / "a.txt", specs, tokenizer)
        assert sample.inputs["attention_mask"].ravel().tolist() == [0.0] * 4 + [-1e4] * 4

    def test_a_text_that_is_cut_says_so(self, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("the sun rises over the sea and the moon is over the hill")
        (sample,) = read_samples(tmp_path / "a.txt", TEXT, tokenizer)
        dropped = tokenizer.encode((tmp_path / "a.txt").read_text(), 8).dropped
        assert dropped > 0 and sample.label == f"a.txt line 1, cut by {dropped} tokens"

    def test_an_id_that_the_program_lacks_is_refused(self, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("the sun")
        with pytest.raises(InputError, match=r"a\.txt line 1: input 'ids' holds .*0 to 3 is right"):
            read_samples(tmp_path / "a.txt", {"ids": TensorSpec((1, 8), "int32", (0, 3)), "mask": MASK}, tokenizer)

    def test_texts_without_a_tokenizer_or_for_a_program_of_other_inputs_are_refused(self, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("the sun")
        with pytest.raises(InputError, match=r"a\.txt line 1 is a text, and there is no tokenizer"):
            read_samples(tmp_path / "a.txt", TEXT)
        for specs in ({"x": X}, {**TEXT, "x": X}, {"ids": IDS, "mask": TensorSpec((1, 9), bounds=(0, 1))}):
            with pytest.raises(InputError, match=r"which gives ids .* the inputs are"):
                read_samples(tmp_path / "a.txt", specs, tokenizer)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


class TestPictures:
    def test_pixels_fill_the_bounds_of_an_array(self, tmp_path: Path) -> None:
        shown = picture((6, 4))
        shown.save(tmp_path / "a.png")
        (sample,) = read_samples(tmp_path / "a.png", {"image": PICTURE})
        np.testing.assert_allclose(sample.inputs["image"][0], np.asarray(shown).transpose(2, 0, 1) / 255, atol=1e-7)
        assert sample.label == "a.png, scaled to 0..1"
        (signed,) = read_samples(tmp_path / "a.png", {"image": TensorSpec((1, 3, 4, 6), bounds=(-1, 1))})
        np.testing.assert_allclose(signed.inputs["image"][0], np.asarray(shown).transpose(2, 0, 1) / 127.5 - 1, atol=5e-4)

    @pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAYSCALE"])
    def test_an_image_gets_the_pixels_in_its_own_colours(self, colour: str, tmp_path: Path) -> None:
        shown = picture((6, 4))
        shown.save(tmp_path / "a.png")
        channels = 1 if colour == "GRAYSCALE" else 3
        interface = Interface((Feature("image", "image", "float32", (4, 6), colour=colour),), (), ())
        specs = {"image": TensorSpec((1, channels, 4, 6), "float32", (0, 255))}
        (sample,) = read_samples(tmp_path / "a.png", specs, interface=interface)
        pixels = np.asarray(shown.convert("L"))[None] if channels == 1 else np.asarray(shown).transpose(2, 0, 1)
        np.testing.assert_array_equal(sample.inputs["image"][0], pixels[::-1] if colour == "BGR" else pixels)
        assert sample.label == "a.png"

    def test_only_another_size_is_resized_and_the_label_says_so(self, tmp_path: Path) -> None:
        picture((12, 8)).save(tmp_path / "large.png")
        (sample,) = read_samples(tmp_path / "large.png", {"image": PICTURE})
        assert sample.inputs["image"].shape == (1, 3, 4, 6) and sample.label == "large.png resized from 12x8 to 6x4, scaled to 0..1"
        assert 0.3 < float(sample.inputs["image"].mean()) < 0.7

    def test_a_folder_of_pictures(self, tmp_path: Path) -> None:
        picture((6, 4), 1).save(tmp_path / "b.jpg")
        picture((6, 4), 2).convert("P").save(tmp_path / "a.png")
        picture((6, 4), 3).convert("RGBA").save(tmp_path / "c.PNG")
        assert [sample.label.split(",")[0] for sample in read_samples(tmp_path, {"image": PICTURE})] == ["a.png", "b.jpg", "c.PNG"]

    def test_a_cut_or_deep_picture_and_a_program_without_an_image_are_refused(self, tmp_path: Path) -> None:
        picture((60, 40)).save(tmp_path / "a.png")
        (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
        with pytest.raises(InputError, match=r"cut\.png is no PNG or JPEG picture, or was cut short"):
            read_samples(tmp_path / "cut.png", {"image": PICTURE})
        Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "deep.png")
        with pytest.raises(InputError, match="8 bits a channel are right"):
            read_samples(tmp_path / "deep.png", {"image": PICTURE})
        for specs in (BOTH, {"x": X}, {"a": PICTURE, "b": PICTURE}):
            with pytest.raises(InputError, match="is a picture, which fills one input of floats"):
                read_samples(tmp_path / "a.png", specs)
