"""Whether a row's bits depend on anything but the row and the weights, and on which operators that hangs."""

import operator
from collections.abc import Collection

import torch
from torch import fx

from fastgraph.aliases import argument, tensors
from fastgraph.constants import constant_nodes
from fastgraph.kernels.library import Op
from fastgraph.rewrite import Rewritten

aten = torch.ops.aten

# Their results are exact, or one correctly rounded operation of IEEE 754, or moved. Sums, and what ATen computes by
# vectorised polynomials (exp, tanh, ...), are other bits where vectors are of another length or a sum is cut otherwise.
_EXACT_NAMES = (
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu threshold hardtanh hardtanh_ clamp clamp_ clamp_min clamp_max abs "
    "neg sign floor ceil round trunc mul mul_ div div_ true_divide reciprocal sqrt rsqrt maximum minimum max_pool1d "
    "max_pool2d max_pool3d adaptive_max_pool1d amax amin where masked_fill masked_fill_ eq ne lt le gt ge isnan isinf "
    "isfinite logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not cat stack clone copy_ "
    "to _to_copy type_as contiguous reshape flatten lift_fresh_copy detach_ embedding gather index index_select "
    "take_along_dim index_put index_put_ scatter flip roll repeat tile tril triu pad constant_pad_nd reflection_pad1d "
    "reflection_pad2d replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle one_hot "
    "dropout upsample_nearest1d upsample_nearest2d upsample_nearest3d arange zeros zeros_like ones ones_like full "
    "full_like new_zeros new_ones new_full eye scalar_tensor empty empty_like fill_ zero_ sym_size sym_numel "
    "sym_stride _assert_async _assert_scalar _assert_tensor_metadata"
)
_EXACT = {getattr(aten, name) for name in _EXACT_NAMES.split()}
_EXACT_UNSCALED = (aten.add, aten.add_, aten.sub, aten.sub_)  # a + alpha b is one rounding or two


def same_bits(rewritten: Rewritten, planned: Collection[str] = ()) -> str:
    """A line for `explain()`. `planned`: names of nodes that our kernels compute, in one order."""
    operators = obstacles(rewritten, planned)
    if not operators:
        return "same bits: yes; a row's do not depend on the batch, the number of threads, or the instruction set"
    counts = ", ".join(f"{name} ({operators.count(name)})" for name in dict.fromkeys(operators))
    return f"same bits: not promised, since a row's may depend on the batch, threads or instruction set in {counts}"


def obstacles(rewritten: Rewritten, planned: Collection[str] = ()) -> list[str]:
    """Names of the operators, one for each node, whose bits may depend on more than a row and the weights."""
    constants = constant_nodes(rewritten.graph)
    free = [n for n in rewritten.graph.nodes if n.op == "call_function" and n not in constants]
    own = [n for n in free if n.name not in planned and not _is_exact(n)]
    inner = [name for nested in rewritten.nested.values() for name in obstacles(nested)]
    return [str(n.target).removesuffix(".default") for n in own if n.target not in _nesting(rewritten)] + inner


def _nesting(rewritten: Rewritten) -> set[object]:
    """Higher order operators whose graphs are looked at themselves."""
    users = (
        n for get in rewritten.graph.find_nodes(op="get_attr") if get.target in rewritten.nested for n in get.users
    )
    return {user.target for user in users}


def _is_exact(node: fx.Node) -> bool:
    target = node.target
    if Op.of(target) is not None:
        weights = node.all_input_nodes[1:]
        return all(_is_fp32_on_cpu(weight) for weight in weights)
    if not isinstance(target, torch._ops.OpOverload):  # the rest computes with sizes
        return target is operator.getitem or not (tensors(node.meta.get("val")) or _is_nesting(target))
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    values = [tensor for n in (node, *node.all_input_nodes) for tensor in tensors(n.meta.get("val"))]
    if any(tensor.is_complex() for tensor in values):
        return False
    if not any(tensor.is_floating_point() for tensor in values):
        return True  # sums of integers know no order
    is_view = not target._schema.is_mutable and any(r.alias_info is not None for r in target._schema.returns)
    if target.overloadpacket in _EXACT_UNSCALED:
        return bool(argument(node, "alpha") == 1)
    if target.overloadpacket in (aten.div, aten.div_) and target._schema.overload_name.endswith("_mode"):
        return argument(node, "rounding_mode") is None
    return is_view or target.overloadpacket in _EXACT


def _is_nesting(target: object) -> bool:
    return isinstance(target, torch._ops.HigherOrderOperator)


def _is_fp32_on_cpu(node: fx.Node) -> bool:
    return all(t.dtype is torch.float32 and t.device.type == "cpu" for t in tensors(node.meta.get("val")))
