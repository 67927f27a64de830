"""Operators of ATen by what they do to the labels of a tensor, under their names without overloads."""

from __future__ import annotations

# fmt: off
#: Entries are moved, and nothing else.
MOVES = frozenset((
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "slice",
    "select", "split", "split_with_sizes", "unbind", "clone", "contiguous", "_to_copy", "detach", "alias",
    "lift_fresh", "roll", "flip", "repeat", "index", "index_select", "narrow", "view_copy",
))
#: Entries are taken together along dimensions.
REDUCTIONS = frozenset((
    "mean", "sum", "amax", "amin", "argmax", "argmin", "linalg_vector_norm", "var", "std", "prod", "any", "all",
))
#: Entries are compared along one dimension, which stays.
ALONG = frozenset((
    "_softmax", "_safe_softmax", "_log_softmax", "sort", "cumsum", "topk",
))
#: Neighbouring positions of maps are taken together.
POOLS = frozenset((
    "avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d",
    "upsample_nearest2d", "upsample_bicubic2d", "avg_pool1d", "max_pool1d_with_indices",
))
#: Entry by entry, without being marked so.
POINTWISE = frozenset((
    "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "celu", "selu", "relu6", "mish", "prelu",
    "softplus",
))
#: Nothing but the shape of what enters matters.
SHAPE_ONLY = frozenset((
    "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_full", "new_empty",
    "rand_like", "randn_like", "bernoulli", "size", "sym_size",
))
#: Entry by entry, some into what is there already.
WRITING = frozenset(("copy_", "masked_fill", "masked_fill_", "where", "native_dropout"))
# fmt: on
