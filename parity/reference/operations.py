"""What float32 does to one aten operation: nothing, an error of its value, of a sum of magnitudes, or of its parts."""

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import get_decompositions

aten = torch.ops.aten


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Values are moved, chosen or compared, never computed: float32 gives the same bits.
EXACT = words(
    """
    abs alias amax amin argmax argmin argsort as_strided bernoulli broadcast_tensors bucketize cat ceil clamp
    clamp_max clamp_min clone constant_pad_nd contiguous copy copysign detach diag diagonal embedding dropout empty
    empty_like empty_strided eq expand eye fill flip floor full full_like gather ge glu_indices gt hardtanh index
    index_copy index_fill index_select isfinite isinf isnan kthvalue le lift_fresh lt masked_fill masked_scatter
    masked_select max max_pool2d_with_indices max_pool3d_with_indices maximum median min minimum mode movedim narrow
    ne neg new_empty new_empty_strided new_full new_ones new_zeros nonzero ones ones_like permute pixel_shuffle
    pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d relu repeat replication_pad1d
    replication_pad2d replication_pad3d resize_ roll round scatter select select_backward select_scatter sgn sign
    slice slice_backward slice_scatter sort split split_with_sizes squeeze stack t threshold_backward topk transpose
    tril triu trunc unbind unfold unsqueeze upsample_nearest1d upsample_nearest2d upsample_nearest3d view view_as
    where zero zeros zeros_like _local_scalar_dense _reshape_alias _to_copy _unsafe_view
    """
)

# Linear in each floating argument with weights that are not negative: their float32 errors are bounded by the same
# operation on magnitudes, |A||B| for a product and Σ|a| for a sum.
LINEAR = words(
    """
    mm bmm mv dot convolution convolution_backward convolution_overrideable sum mean nansum cumsum trace avg_pool1d
    avg_pool2d avg_pool3d avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d _adaptive_avg_pool3d
    _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward embedding_dense_backward index_add scatter_add
    index_put _index_put_impl max_pool2d_with_indices_backward max_pool3d_with_indices_backward upsample_linear1d
    upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d upsample_linear1d_backward
    upsample_bilinear2d_backward upsample_trilinear3d_backward upsample_bicubic2d_backward _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
    unfold_backward im2col col2im reflection_pad1d_backward reflection_pad2d_backward replication_pad2d_backward
    """
)

PRODUCTS = words("mm bmm mv dot convolution convolution_backward")
SUMS = words(
    "sum cumsum index_add scatter_add index_put _index_put_impl embedding_dense_backward "
    "max_pool2d_with_indices_backward unfold_backward im2col col2im"
)

# Draws take other numbers from the generator in float64: they are made in float32, then widened.
DRAWS = words(
    """
    rand randn rand_like randn_like normal normal_ uniform uniform_ bernoulli bernoulli_ exponential_ geometric_
    random_ log_normal_ cauchy_ multinomial randperm randint randint_like normal_functional native_dropout poisson
    binomial
    """
)

# Composite kernels whose insides round: taken apart, so that every one of their operations errs.
COMPOSITE = words(
    """
    addmm addmv addbmm baddbmm addr addcmul addcdiv lerp _softmax _softmax_backward_data _log_softmax
    _log_softmax_backward_data native_layer_norm native_layer_norm_backward native_group_norm
    native_group_norm_backward native_batch_norm native_batch_norm_backward _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _batch_norm_with_update
    batch_norm_backward var var_mean std std_mean gelu gelu_backward silu silu_backward mish mish_backward softplus
    softplus_backward elu elu_backward leaky_relu leaky_relu_backward hardsigmoid hardsigmoid_backward hardswish
    hardswish_backward log_sigmoid_forward log_sigmoid_backward sigmoid_backward tanh_backward logsumexp
    binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits mse_loss mse_loss_backward
    smooth_l1_loss smooth_l1_loss_backward huber_loss huber_loss_backward soft_margin_loss soft_margin_loss_backward
    glu glu_backward nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward _fused_rms_norm
    _fused_rms_norm_backward _weight_norm_interface native_dropout_backward rsub grid_sampler_2d dist logit
    logit_backward _prelu_kernel _prelu_kernel_backward renorm softshrink celu selu xlogy multi_margin_loss
    multilabel_margin_loss_forward hardtanh_backward norm
    """
)


def name_of(operation: Any) -> str:
    """`add` for `aten.add_.Tensor`: what is computed, however it is called or stored."""
    name = str(operation._schema.name).partition("::")[2]
    return name.rstrip("_") if not name.startswith("__") else name


def _softmax(values: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    powers = (values - values.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def _log_softmax(values: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    shifted = values - values.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def _added_product(
    added: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """With a beta of 0 what is added may be memory that nobody wrote."""
    product = alpha * (a @ b)
    return beta * added + product if beta else product


# The commonest ones in a line each: torch's own decompositions of them take many times as long.
_PLAIN: dict[Any, Callable[..., Any]] = {
    aten.lerp.Scalar: lambda a, b, weight: a + weight * (b - a),
    aten.lerp.Tensor: lambda a, b, weight: a + weight * (b - a),
    aten.addcmul.default: lambda a, b, c, value=1: a + value * (b * c),
    aten.addcdiv.default: lambda a, b, c, value=1: a + value * (b / c),
    aten.addmm.default: _added_product,
    aten.baddbmm.default: _added_product,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
}

DECOMPOSED = {**get_decompositions([getattr(aten, name) for name in COMPOSITE if hasattr(aten, name)]), **_PLAIN}
"""Overload → the same in smaller operations."""
