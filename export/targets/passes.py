"""Passes of the converter that are left out, with reasons. They decide a package's bytes and are part of its fingerprint."""

REMOVED_PASSES = (
    # Token ids are never negative: without these two an embedding is one gather, with them seven integer ops on the CPU.
    "common::guard_negative_gather_indices",
    "common::add_int16_cast",
    # It turns x * gamma + beta into a batch norm of variance 1 and forgets to say epsilon, whose default is 1e-5: every value comes out
    # 5e-6 too small (coremltools 9.0; a trained channel-wise layer norm fails R2 by it).
    "common::fuse_elementwise_to_batchnorm",
)
