"""Passes of the converter that are left out, with reasons. They decide a package's bytes and are part of its fingerprint."""

# Since iOS17 a gather takes no negative index, and this pass counts such ones from the start: seven integer ops on the CPU for each gather.
NEGATIVE_INDICES = "common::guard_negative_gather_indices"
REMOVED_PASSES = (
    NEGATIVE_INDICES,  # unless the module may index with negative numbers: token ids are never negative
    "common::add_int16_cast",  # which is for that guard, and makes casts of its own
    # It turns x * gamma + beta into a batch norm of variance 1 and forgets to say epsilon, whose default is 1e-5: every value comes out
    # 5e-6 too small (coremltools 9.0; a trained channel-wise layer norm fails R2 by it).
    "common::fuse_elementwise_to_batchnorm",
)
