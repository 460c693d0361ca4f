"""What generated modules are made of.

Templates name `{x}`, a floating tensor; `{y}`, another of the same shape; `{z}`, any other; `{i}`, indices below 6; `{m}`,
a mask; `{d}` and `{e}`, two of `{x}`'s axes; `{c}`, the size of the axis that a layer works on; `{o}`, a new size; `{k}`,
a new name in `self`. Whether an operator takes what it is given is found by running it.
"""

# (constructor, axes that the input may have, the axis whose size it needs)
LAYERS = [
    ("nn.Linear({c}, {o})", (1, 2, 3, 4), -1),
    ("nn.Linear({c}, {o}, bias=False)", (2, 3), -1),
    ("nn.Sequential(nn.Linear({c}, {o}), nn.ReLU(), nn.Linear({o}, {c}))", (2, 3), -1),
    ("nn.Sequential(nn.Linear({c}, {o}), nn.Sigmoid(), nn.Linear({o}, 5), nn.Softmax(dim=-1))", (2,), -1),
    ("nn.Sequential(nn.Linear({c}, {o}), nn.BatchNorm1d({o}), nn.ReLU())", (2,), -1),
    ("nn.Sequential(nn.Linear({c}, {o}), nn.Dropout(0.3), nn.Tanh(), nn.Linear({o}, 3), nn.LogSoftmax(dim=1))", (2,), -1),
    ("nn.Conv1d({c}, {o}, 3)", (3,), 1),
    ("nn.Conv1d({c}, {o}, 3, stride=2, padding=1)", (3,), 1),
    ("nn.Conv1d({c}, {o}, 2, dilation=2, padding='same', bias=False)", (3,), 1),
    ("nn.Conv1d({c}, {c}, 3, padding=1, groups={c})", (3,), 1),
    ("nn.Conv1d({c}, {o}, 3, padding=1, padding_mode='circular')", (3,), 1),
    ("nn.Conv2d({c}, {o}, 3)", (4,), 1),
    ("nn.Conv2d({c}, {o}, (3, 1), stride=2, padding=(1, 0))", (4,), 1),
    ("nn.Conv2d({c}, {c}, 3, padding=1, groups={c})", (4,), 1),
    ("nn.Conv2d({c}, {o}, 1, bias=False)", (4,), 1),
    ("nn.Conv2d({c}, {o}, 2, dilation=2)", (4,), 1),
    ("nn.Sequential(nn.Conv2d({c}, {o}, 3), nn.ReLU(), nn.MaxPool2d(2))", (4,), 1),
    ("nn.Sequential(nn.Conv2d({c}, {o}, 3, padding=1), nn.BatchNorm2d({o}), nn.ReLU(), nn.MaxPool2d(3, 2))", (4,), 1),
    ("nn.Sequential(nn.Conv2d({c}, {o}, 3), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.LazyLinear(4))", (4,), 1),
    ("nn.ConvTranspose1d({c}, {o}, 3, stride=2)", (3,), 1),
    ("nn.ConvTranspose2d({c}, {o}, 2, stride=2)", (4,), 1),
    ("nn.MaxPool1d(2)", (3,), 1),
    ("nn.AvgPool1d(2, padding=1)", (3,), 1),
    ("nn.MaxPool2d(2)", (4,), 1),
    ("nn.MaxPool2d(3, 1, padding=1, ceil_mode=True)", (4,), 1),
    ("nn.AvgPool2d(2)", (4,), 1),
    ("nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)", (4,), 1),
    ("nn.AdaptiveAvgPool1d(2)", (3,), 1),
    ("nn.AdaptiveAvgPool2d(1)", (4,), 1),
    ("nn.AdaptiveAvgPool2d((3, 2))", (4,), 1),
    ("nn.AdaptiveMaxPool2d(2)", (4,), 1),
    ("nn.LPPool2d(2, 2)", (4,), 1),
    ("nn.BatchNorm1d({c})", (2, 3), 1),
    ("nn.BatchNorm2d({c})", (4,), 1),
    ("nn.BatchNorm1d({c}, affine=False)", (2, 3), 1),
    ("nn.LayerNorm({c})", (2, 3, 4), -1),
    ("nn.LayerNorm({c}, elementwise_affine=False)", (2, 3), -1),
    ("nn.RMSNorm({c})", (2, 3), -1),
    ("nn.GroupNorm(1, {c})", (2, 3, 4), 1),
    ("nn.GroupNorm(2, {c})", (3, 4), 1),
    ("nn.InstanceNorm1d({c}, affine=True)", (3,), 1),
    ("nn.InstanceNorm2d({c})", (4,), 1),
    ("nn.Dropout(0.5)", (2, 3, 4), 1),
    ("nn.Dropout2d(0.5)", (4,), 1),
    ("nn.PReLU()", (2, 3, 4), 1),
    ("nn.PReLU({c})", (2, 3, 4), 1),
    ("nn.Flatten()", (3, 4), 1),
    ("nn.Upsample(scale_factor=2)", (3, 4), 1),
    ("nn.PixelUnshuffle(2)", (4,), 1),
    ("nn.TransformerEncoderLayer({c}, 2, 8, batch_first=True)", (3,), -1),
    ("nn.TransformerEncoderLayer({c}, 1, 8, activation='gelu', norm_first=True)", (3,), -1),
    ("nn.Identity()", (2, 3, 4), 1),
]

# The same with a call of its own; `{k}` is the layer.
CALLED_LAYERS = [
    ("nn.LSTM({c}, {o}, batch_first=True)", (3,), -1, "{n}, _ = self.{k}({x})"),
    ("nn.LSTM({c}, {o}, num_layers=2, bidirectional=True)", (3,), -1, "{n} = self.{k}({x})[0]"),
    ("nn.LSTM({c}, {o}, batch_first=True)", (3,), -1, "_, ({n}, _) = self.{k}({x})"),
    ("nn.GRU({c}, {o}, batch_first=True)", (3,), -1, "{n}, _ = self.{k}({x})"),
    ("nn.GRU({c}, {o})", (2, 3), -1, "{n} = self.{k}({x})[1]"),
    ("nn.RNN({c}, {o}, nonlinearity='relu', batch_first=True)", (3,), -1, "{n} = self.{k}({x})[0][:, -1]"),
    ("nn.LSTMCell({c}, {o})", (2,), -1, "{n}, _ = self.{k}({x})"),
    ("nn.GRUCell({c}, {o})", (2,), -1, "{n} = self.{k}({x})"),
    ("nn.RNNCell({c}, {c})", (2,), -1, "{n} = self.{k}({x}, {x})"),
    ("nn.MultiheadAttention({c}, 2, batch_first=True)", (3,), -1, "{n}, _ = self.{k}({x}, {x}, {x})"),
    ("nn.MultiheadAttention({c}, 1)", (3,), -1, "{n} = self.{k}({x}, {x}, {x}, need_weights=False)[0]"),
    ("nn.Bilinear({c}, {c}, {o})", (2,), -1, "{n} = self.{k}({x}, {x})"),
    ("nn.Linear({c}, {o})", (2, 3), -1, "{n} = F.linear({x}, self.{k}.weight * 2, self.{k}.bias)"),
    ("nn.Linear({c}, {o})", (2, 3), -1, "{n} = {x} @ F.normalize(self.{k}.weight, dim=1).t() + self.{k}.bias"),
    ("nn.Linear({c}, {o})", (2,), -1, "{n} = torch.addmm(self.{k}.bias, {x}, self.{k}.weight.t())"),
    ("nn.Linear({c}, {c})", (2, 3), -1, "{n} = F.relu(self.{k}({x})) + {x}"),
    ("nn.Linear({c}, {c})", (2, 3), -1, "{n} = self.{k}(torch.tanh(self.{k}({x})))"),
    ("nn.Linear({c}, {o})", (2, 3), -1, "{n} = F.linear(F.relu(self.{k}({x})), self.{k}.weight.t())"),
    ("nn.MaxPool2d(2, return_indices=True)", (4,), 1, "{n}, _ = self.{k}({x})"),
    ("nn.Parameter(torch.randn({c}, {o}))", (2, 3), -1, "{n} = {x} @ self.{k}"),
    ("nn.Parameter(torch.randn({c}, {o}))", (2,), -1, "{n} = torch.einsum('bi,ij->bj', {x}, self.{k})"),
    ("nn.Parameter(torch.randn({c}))", (2, 3, 4), -1, "{n} = {x} * self.{k}"),
    ("nn.Parameter(torch.zeros(1, 1, {c}))", (3,), -1,
     "{n} = torch.cat([self.{k}.expand({x}.shape[0], -1, -1), {x}], 1)"),
]  # fmt: skip

POINTWISE = [
    *(f"F.{name}({{x}})" for name in (
        "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardswish hardsigmoid logsigmoid "
        "tanhshrink softshrink hardshrink"
    ).split()),
    "F.gelu({x}, approximate='tanh')",
    *(f"torch.{name}({{x}})" for name in "relu sigmoid tanh exp sin cos abs neg square sign floor round trunc erf".split()),
    "torch.rsqrt({x}.abs() + 0.5)", "torch.log1p({x}.abs())", "{x}.clamp(min=0)", "{x}.clamp(-1, 1)", "{x} * 2 + 1",
    "1 - {x}", "{x} / 3", "{x} ** 2", "{x} % 0.7", "torch.nan_to_num({x})", "{x}.detach()", "{x}.clone()",
    "F.softmax({x}, dim={d})", "F.log_softmax({x}, dim={d})", "F.softmin({x}, dim={d})", "F.glu({x}, dim={d})",
    "F.normalize({x}, dim={d})", "F.dropout({x}, 0.5, self.training)", "F.layer_norm({x}, {x}.shape[-1:])",
    "StraightThrough.apply({x})", "ReverseGradient.apply({x})", "{x}.half().to({x}.dtype)", "{x}.double().to({x}.dtype)",
    "{x}.to(torch.bfloat16).to({x}.dtype)", "{x}.type_as({x})", "torch.where({x} > 0, {x}, 0.1 * {x})",
    "{x}.masked_fill({x} > 1, 0.5)", "{x}.cumsum({d})", "{x}.roll(1, {d})", "{x}.flip({d})", "{x}.sort({d})[0]",
    "{x} + torch.arange({x}.shape[-1])", "{x} * torch.full_like({x}, 0.5)", "{x} + torch.zeros({x}.shape[0], 1)",
    "{x} + {x}.new_ones({x}.shape)", "{x} - torch.eye({x}.shape[-1])[0]", "{x}.tril()", "{x} + {x}.mean({d}, keepdim=True)",
    "({x} > 0).to({x}.dtype)", "{x}.float() * 2", "{x} + torch.tensor([1.0])", "{x} * {x}.shape[0]",
    "torch.atan2({x}, {x} + 1)", "torch.remainder({x}, 1.5)", "{x}.logcumsumexp({d})", "{x}.softmax(-1).log()",
]  # fmt: skip

SHAPES = [
    "{x}.flatten(1)", "{x}.flatten(0, 1)", "{x}.flatten()", "{x}.reshape({x}.shape[0], -1)", "{x}.view({x}.size(0), -1)",
    "{x}.reshape(-1, {x}.shape[-1])", "{x}.view(-1, {x}.shape[-1])", "{x}.unsqueeze({d})", "{x}.squeeze({d})", "{x}[None]",
    "{x}.squeeze()", "{x}.transpose({d}, {e})", "{x}.permute(*reversed(range({x}.dim())))", "{x}.movedim({d}, {e})", "{x}.mT",
    "{x}.transpose(0, 1).reshape({x}.shape[1], -1)", "{x}.t()", "{x}[:, ::2]", "{x}[..., 1:]", "{x}[:, -1]", "{x}[0]",
    "{x}[-1:]", "{x}[..., :2]", "{x}.narrow({d}, 0, 1)", "{x}.select({d}, 0)", "{x}.unbind({d})[0]",
    "{x}.diagonal(dim1={d}, dim2={e})", "{x}.unfold({d}, 2, 1)", "{x}.repeat_interleave(2, {d})", "{x}.contiguous()",
    "{x}.to(memory_format=torch.channels_last)", "{x}.unsqueeze(1).expand(-1, 3, *{x}.shape[1:])", "{x}.expand_as({x})",
    "{x}.chunk(2, {d})[0]", "{x}.split(2, {d})[-1]", "{x}.tensor_split(2, {d})[1]", "{x}.unflatten({d}, (2, -1))",
    "torch.cat([{x}, {x}], {d})", "torch.stack([{x}, {x} * 2], {d})", "torch.hstack([{x}, {x}])", "{x}.index_select({d}, {i}[0])",
    "{x}[:, torch.tensor([1, 0])]", "{x}[torch.arange({x}.shape[0])]", "F.pad({x}, (1, 0))", "F.pad({x}, (0, 1), value=2.0)",
    "F.pad({x}, (1, 1), mode='reflect')", "F.pixel_shuffle({x}, 2)", "F.interpolate({x}, scale_factor=2)",
    "F.interpolate({x}, size=({x}.shape[2] // 2, 5), mode='bilinear')", "{x}.repeat(1, *[2] * ({x}.dim() - 1))",
    "F.unfold({x}, 2)", "torch.atleast_3d({x})", "torch.einsum('ij->ji', {x})", "{x}.movedim(0, -1)", "{x}.view_as({x})",
    "torch.concat([{x}[:, :1], {x}], dim=1)", "F.avg_pool2d({x}, 2)", "F.max_pool1d({x}, 2)", "F.adaptive_avg_pool2d({x}, 1)",
]  # fmt: skip

REDUCTIONS = [
    "{x}.mean({d})", "{x}.sum({d})", "{x}.var({d})", "{x}.std({d}, keepdim=True)", "{x}.amax({d})", "{x}.max({d})[0]",
    "{x}.max({d}).values", "{x}.topk(1, {d})[0]", "{x}.topk(2, {d}).values", "{x}.norm(dim={d})", "{x}.logsumexp({d})",
    "{x}.prod({d})", "{x}.min({d})[0]", "{x}.mean()", "{x}.sum()", "{x}.median({d})[0]", "{x}.mean((-2, -1))",
    "F.cosine_similarity({x}, {x} + 1, dim={d})", "F.mse_loss({x}, {x} * 0.5)", "{x}.aminmax(dim={d})[1]",
]  # fmt: skip

INTEGERS = [
    "{x}.argmax({d})", "{x}.argsort({d})", "{x}.max({d})[1]", "{x}.topk(2, {d})[1]", "({x} > 0).sum({d})", "{x}.long()",
    "{x}.argmin()", "({x} > 0).nonzero().shape[0] + {x}.argmin()",
]  # fmt: skip

MASKS = ["{x} > 0", "{x}.isnan()", "({x} > 0).any({d})", "({x} < 1) & ({x} > -1)", "{x}.eq({x})"]

BINARY = [
    "{x} + {y}", "{x} - {y}", "{x} * {y}", "torch.maximum({x}, {y})", "torch.where({x} > {y}, {x}, {y})",
    "torch.cat([{x}, {y}], {d})", "torch.stack([{x}, {y}], {d})", "{x} @ {y}.mT", "torch.addcmul({x}, {x}, {y}, value=0.5)",
    "torch.lerp({x}, {y}, 0.3)", "{x}.gather({d}, {y}.argsort({d}))", "F.scaled_dot_product_attention({x}, {y}, {x})",
    "torch.add({x}, {y}, alpha=2)", "F.linear({x}, {y})", "{x} / ({y}.abs() + 1)", "{x}.mul({y}).sum({d})",
]  # fmt: skip

MIXED = [
    "{x} + {z}", "{x} * {z}", "{x} @ {z}", "torch.matmul({x}, {z})", "F.linear({x}, {z})", "{x} + {z}.mean()",
    "{x}.masked_fill({m}, 0.0)", "torch.where({m}, {x}, 0.5)", "{x} * {m}", "{x} + {m}.sum()", "{x}[:, {i}[0]]", "{x}[{i}[0] * 0]",
    "{x} + {i}.sum()", "{x}.gather({d}, ({i}[:, :1] * 0))", "F.one_hot({i}, 6).to({x}.dtype)", "{i} * 0.1", "{i}.float() + 1",
    "F.one_hot({i}, 6).sum(1).to({x}.dtype)", "{x} / (1 + {i}.max())", "torch.index_add({x}, 0, {i}[:, 0] * 0, {x})",
]  # fmt: skip

WRITES = [
    "{x}.relu_()", "F.relu_({x})", "F.relu({x}, inplace=True)", "{x}.add_(1)", "{x}.mul_(0.5)", "{x} += 1", "{x} *= 2",
    "{x}.clamp_(-1, 1)", "{x}[:, :2] = 0", "{x}[..., 0] = 1", "{x}[:, 1:] += 1", "{x}[0] = 0.5", "{x}[..., ::2] *= 2",
    "{x}.masked_fill_({x} > 0.5, 0.0)", "{x}[{x} > 1] = 0.5", "{x}[:, 0].zero_()", "{x}.t().add_(1)", "{x}.view(-1)[:2] = 1",
    "{x}.flatten()[:1].mul_(3)", "{x}.transpose(0, 1)[0] = 2", "{x}.copy_({y})", "{x}[:1] = {y}[:1]", "{x}.add_({y}, alpha=0.5)",
    "{x}.index_fill_(1, torch.tensor([0]), 1.0)", "{x}.squeeze().mul_(2)", "{x}.sigmoid_()", "{x}.unbind(1)[0].add_(1)",
    "torch.add({x}, 1, out={x})", "{x}.fill_(0.25)", "{x}.detach().mul_(2)", "{x}.index_put_((torch.tensor([0]),), {x}[:1] * 2)",
    "{x}.expand_as({x}).mul_(2)", "{x}.narrow(1, 0, 1).fill_(3)", "{x}.clone().zero_()", "{x}.zero_()",
]  # fmt: skip

# (lines of __init__, lines of forward), `{r}` a tensor of the size of the last axis, `{c}`
STATE = [
    (["self.register_buffer('{k}', torch.zeros(()))"], ["self.{k} += 1", "{n} = {x} * self.{k}"]),
    (["self.register_buffer('{k}', torch.zeros((), dtype=torch.long))"], ["self.{k}.add_(1)", "{n} = {x} + self.{k}"]),
    (["self.register_buffer('{k}', torch.zeros({c}))"],
     ["self.{k}.mul_(0.9).add_({r}.detach(), alpha=0.1)", "{n} = {x} - self.{k}"]),
    (["self.register_buffer('{k}', torch.zeros(4, {c}))"],
     ["self.{k}[:-1] = self.{k}[1:].clone()", "self.{k}[-1] = {r}.detach()", "{n} = {x} + self.{k}.mean(0)"]),
    (["self.register_buffer('{k}', torch.zeros({c}), persistent=False)"],
     ["{n} = {x} + self.{k}", "self.{k}[:1] += 1"]),
    (["self.register_buffer('{k}', torch.zeros(2, {c}))"], ["self.{k}.view(-1)[0] = 3", "{n} = {x} + self.{k}.sum(0)"]),
    (["self.register_buffer('{k}', torch.zeros({c}))"], ["with torch.no_grad():", "    self.{k}.copy_({r})", "{n} = {x} * self.{k}"]),
    (["self.register_buffer('{k}', torch.zeros({c}))"], ["self.{k} = self.{k} * 0.5 + {r}.detach()", "{n} = {x} + self.{k}"]),
    (["self.register_buffer('{k}', torch.randn({c}))"], ["{n} = {x} * self.{k}"]),
    (["self.register_buffer('{k}', torch.randn({c}), persistent=False)"], ["{n} = {x} + self.{k}"]),
    (["self.{k} = torch.linspace(0, 1, {c})"], ["{n} = {x} + self.{k}"]),
    (["self.{k} = torch.zeros({c})"], ["self.{k} = torch.tanh({r}.detach() + self.{k})", "{n} = {x} + self.{k}"]),
    (["self.{k} = torch.zeros({c})"], ["self.{k}.add_({r}.detach())", "{n} = {x} * self.{k}"]),
    (["self.{k} = 0"], ["self.{k} += 1", "{n} = {x} * self.{k}"]),
    (["self.register_buffer('{k}', torch.zeros({c}))"], ["{n} = {x} + self.{k}", "self.{k}.add_(1)"]),
    (["self.register_buffer('{k}', torch.ones({c}))"], ["{n} = self.{k}.relu_() + {x}"]),
    (["self.register_buffer('{k}', torch.ones({c}))"], ["self.{k}[torch.tensor([0])] = 2.0", "{n} = {x} * self.{k}"]),
    (["self.register_buffer('{k}', torch.zeros(2, {c}))"], ["self.{k}.t()[0].add_(1)", "{n} = F.linear({x}, self.{k})"]),
    (["self.{k}a = nn.Linear({c}, {c})", "self.{k}b = nn.Linear({c}, {c})", "self.{k}b.weight = self.{k}a.weight"],
     ["{n} = self.{k}b(F.relu(self.{k}a({x})))"]),
    (["self.{k} = nn.Embedding(6, {c})", "self.{k}o = nn.Linear({c}, 6, bias=False)", "self.{k}o.weight = self.{k}.weight"],
     ["{n} = self.{k}o({x})"]),
    (["self.{k} = nn.ModuleList([nn.Linear({c}, {c}) for _ in range(2)])"],
     ["{n} = {x}", "for layer in self.{k}:", "    {n} = F.relu(layer({n}))"]),
    (["self.{k} = nn.Embedding(6, {c})"], ["{n} = self.{k}({i})"]),
    (["self.{k} = nn.Embedding(6, {c}, padding_idx=0)"], ["{n} = self.{k}({i}).mean(1)"]),
    (["self.{k} = nn.EmbeddingBag(6, {c})"], ["{n} = self.{k}({i})"]),
]  # fmt: skip

BRANCHES = [
    ["if {x}.shape[0] > 2:", "    {n} = {x} * 2", "else:", "    {n} = {x} - 1"],
    ["if {x}.shape[0] == 1:", "    {n} = torch.relu({x})", "else:", "    {n} = {x} + {x}.mean(0)"],
    ["{n} = {x}.abs() if {x}.ndim > 2 else {x} * 3"],
    ["{n} = {x} + 1", "if {x}.dtype == torch.int64:", "    {n} = {n} * 2"],
    ["{n} = {x} / 2 if {x}.is_floating_point() else {x}"],
    ["{n} = F.dropout({x}, 0.5) if self.training else {x} * 0.5"],
    ["{n} = {x}", "for _ in range({x}.shape[-1] % 3):", "    {n} = torch.sin({n})"],
    ["{n} = {x} if {x}.is_contiguous() else {x} * 2"],
    ["with torch.no_grad():", "    {n} = torch.tanh({x})"],
    ["with torch.no_grad():", "    {n} = {x} * 2", "{n} = {n} + {x}"],
    ["with torch.no_grad():", "    {x}.mul_(0.5)", "{n} = {x} + 1"],
    ["with torch.enable_grad():", "    {n} = {x} * {x}"],
    ["{n} = {x}", "assert {x}.shape[0] > 0", "{n} = {n} * 1.5"],
    ["{n} = {x} * 2 if torch.is_grad_enabled() else {x} * 2"],
    ["a_, b_ = {x}.chunk(2, -1)", "{n} = a_ * torch.sigmoid(b_)"],
    ["{n}, _ = {x}.max({d}, keepdim=True)"],
    ["{n} = [{x}, {x} * 2]", "{n} = {n}[0] + {n}[1]"],
    ["{n} = sum([{x}, {x}.relu(), 1])"],
    ["{n} = {x}.clone()", "{n}[:, 0] = {x}[:, -1]"],
    ["{n} = torch.zeros_like({x})", "{n}[:, 1:] = {x}[:, :-1]"],
    ["{n} = torch.zeros({x}.shape[0], 3)", "{n}[:, 0] = {x}.flatten(1).mean(1).float()"],
    ["{n} = torch.sigmoid({x})", "{n} = F.relu({n})", "{n}.mul_(3)"],
    ["{n} = {x} * 2", "v_ = {n}.view(-1)", "v_[0] = 5"],
    ["{n} = {x} * 2", "v_ = {n}[:, :1]", "{n}.add_(1)", "{n} = {n} + v_"],
]

# {a}, {b}: names of tensors; {p}: a parameter or buffer, {v}: an input
RESULTS = [
    *["{a}"] * 8, *["{a}, {b}"] * 4, "[{a}, {b}]", "{{'first': {a}, 'second': {b}}}", "Pair({a}, {b})", "{a}, {a}",
    "{a}, {a}[..., :1]", "{a}, {v}", "{v}", "{a}, {v}[:, :1]", "{a}, {p}", "{a}, None", "{a}, {a}.shape[0]", "{a}, 'name'",
    "{a}, 1.5", "({a}, [{b}, {{'v': {a}}}])", "{a}.max(-1)", "{a}.topk(1, -1)", "({a},)", "{a}, {b}.detach()", "{a}.mT, {a}",
    "{a}.relu(), {a}.relu()", "{a}, {a}.view(-1)", "{a}, F.relu(torch.sigmoid({a}))", "{a}, {b}.argmax(-1)",
    "{a}, ({b} > 0)", "{v}, {v}.flatten()", "{p}", "{a}.clone(), {a}.contiguous()", "{a}, {a}.to({a}.dtype)",
]  # fmt: skip
