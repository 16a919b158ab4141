"""What every kernel does to its operands on the way in and out: one prologue, one epilogue, in registers.

    prologue   t = act(x_scale * x + x_shift)          before the padding, which stays zero
    epilogue   y = act(scale * sum + shift + residual)
    shuffle    channel_shuffle(cat([beside, y]))       as addresses of the maps that are written

An operand that is not there is None, which Triton compiles as a constant: what is not used costs nothing. All
arithmetic is in float32.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def activate(v, ACTIVATION: tl.constexpr, alpha):
    """The activation of float32 values; alpha is leaky_relu's slope below 0 and elu's factor. NaN stays NaN."""
    if ACTIVATION == "relu":
        v = tl.where(v < 0.0, 0.0, v)
    elif ACTIVATION == "relu6":
        v = tl.where(v < 0.0, 0.0, tl.where(v > 6.0, 6.0, v))
    elif ACTIVATION == "leaky_relu":
        v = tl.where(v > 0.0, v, v * alpha)
    elif ACTIVATION == "elu":
        v = tl.where(v > 0.0, v, alpha * (tl.exp(v) - 1.0))
    elif ACTIVATION == "hardswish":
        v = v * tl.where(v < -3.0, 0.0, tl.where(v > 3.0, 6.0, v + 3.0)) / 6.0
    elif ACTIVATION == "silu":
        v = v / (1.0 + tl.exp(-v))
    elif ACTIVATION == "sigmoid":
        v = 1.0 / (1.0 + tl.exp(-v))
    elif ACTIVATION == "tanh":
        v = 2.0 / (1.0 + tl.exp(-2.0 * v)) - 1.0
    return v


@triton.jit
def prologue(tile, mask, scale, shift, maps, maps_mask, ACTIVATION: tl.constexpr, alpha):
    """A tile of x [pixels, maps] as the convolution reads it: zero where mask is not set, in the tile's dtype.

    scale and shift are pointers or None; maps [maps] are the tile's maps, maps_mask says which of them there are.
    """
    if scale is None and shift is None and ACTIVATION == "none":
        return tile
    v = tile.to(tl.float32)
    if scale is not None:
        v *= tl.load(scale + maps, mask=maps_mask, other=0.0).to(tl.float32)[None, :]
    if shift is not None:
        v += tl.load(shift + maps, mask=maps_mask, other=0.0).to(tl.float32)[None, :]
    v = activate(v, ACTIVATION, alpha)
    return tl.where(mask, v, 0.0).to(tile.dtype)


@triton.jit
def epilogue(total, mask, scale, shift, residual, residual_offsets, maps, maps_mask, ACTIVATION: tl.constexpr, alpha):
    """act(scale * total + shift + residual) for sums [pixels, maps], in float32.

    scale, shift and residual are pointers or None; residual_offsets [pixels, maps] are in elements.
    """
    if scale is not None:
        total *= tl.load(scale + maps, mask=maps_mask, other=0.0).to(tl.float32)[None, :]
    if shift is not None:
        total += tl.load(shift + maps, mask=maps_mask, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        total += tl.load(residual + residual_offsets, mask=mask, other=0.0).to(tl.float32)
    return activate(total, ACTIVATION, alpha)


@triton.jit
def place(map_, per_group, SHUFFLE: tl.constexpr):
    """Where maps end up when they are shuffled: the j-th of group g at j * SHUFFLE + g (arXiv 1707.01083)."""
    if SHUFFLE > 1:
        map_ = map_.to(tl.int32)
        map_ = map_ % per_group * SHUFFLE + map_ // per_group
    return map_


@triton.jit
def write(y, pixel, total, mask, map_, maps, beside, beside_offsets, per_group, SHUFFLE: tl.constexpr):
    """Writes a tile [pixels, maps] of y, each map where the shuffle puts it, and returns where that is.

    pixel [pixels] are offsets in y, map_ [maps] the tile's maps of the `maps` that y has. beside is None or a
    pointer to as many other maps, which are shuffled with y's and stand before them. Their tile is written too.
    """
    first = 0
    if beside is not None:
        tile = tl.load(beside + beside_offsets, mask=mask, other=0.0)
        tl.store(y + pixel[:, None] + place(map_, per_group, SHUFFLE)[None, :], tile, mask=mask)
        first = maps
    out = y + pixel[:, None] + place(first + map_, per_group, SHUFFLE)[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=mask)
    return out
