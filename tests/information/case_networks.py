"""Small networks with shared, tied, indexed, routed and dead parameters."""

import torch
from networks import Of
from torch import nn
from torch.nn import functional as F


def mean(keep=1):
    """Mean over all dimensions but batch and one."""
    return Of(lambda m, x: x.movedim(keep, 1).flatten(2).mean(2))


def shared(m, x):
    """One layer used twice, with a residual path."""
    x = x + torch.tanh(m.layer(x))
    return m.head(torch.tanh(m.layer(x)) + x)


def shared_convolution(m, x):
    """One convolution used at two resolutions."""
    x = torch.tanh(m.conv(x))
    return m.conv(F.avg_pool2d(x, 2)).flatten(2).mean(2)


class Tied(nn.Module):
    """A language model's head that is its embedding."""

    def __init__(self, functional):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.functional = functional
        if not functional:
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

    def forward(self, x):
        x = torch.tanh(self.embedding(x)).mean(1)
        return F.linear(x, self.embedding.weight) if self.functional else self.head(x)


class Residual(nn.Module):
    """BatchNorm, in-place activations and a shortcut, as in ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.short = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 4)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        out = self.conv(x)
        out += self.short(x)
        return self.head(self.relu(out).flatten(2).mean(2))


class Tokens(nn.Module):
    """A class token, a position embedding, attention and a LayerScale, as in a ViT."""

    def __init__(self, attention="own"):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.position = nn.Parameter(torch.randn(1, 6, 4))
        self.norm = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)
        # A parameter of its own, without a closed form.
        self.scale = Of(lambda m, x: x * m.gamma, gamma=nn.Parameter(torch.randn(4)))
        self.head = nn.Linear(4, 3)
        self.attention = attention
        if attention == "torch":
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        if self.attention == "torch":
            y = self.norm(x)
            x = x + self.attend(y, y, y, need_weights=False)[0]
        else:
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            x = x + self.scale(F.scaled_dot_product_attention(q, k, v))
        return self.head(x[:, 0])


def indexed(m, x):
    """A parameter of shape (1, ...) whose first dimension is taken away."""
    return m.head(torch.tanh(x + m.bias[0]))


def sequence_first(m, x):
    """The layer sees (T, N, C): its first dimension is not the batch."""
    return torch.tanh(m.layer(x.transpose(0, 1))).transpose(0, 1).sum(1)


class Standardised(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def data_dependent(m, x):
    """Reads a number out of a tensor, so that a batch is not the sum of its samples."""
    out = m.layer(x)
    return out * float(out.detach().abs().max())


def routed(m, x):
    """Two experts; which one a sample goes to depends on the sample."""
    code, side = torch.tanh(m.trunk(x)), (x[:, 0] > 0).long()
    out = code.new_zeros(len(x), 3)
    for k, expert in enumerate(m.experts):
        if (side == k).any():
            out[side == k] = expert(code[side == k])
    return out


class Prompt(nn.Module):
    """Gives its own parameter away."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(5, 4))

    def forward(self):
        return self.tokens


class Prompted(nn.Module):
    """Adds a prompt, times a number, and a table that is the same for all samples."""

    def __init__(self, rows=5):
        super().__init__()
        self.prompt, self.affine = Prompt(), Affine()
        self.size = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("table", torch.randn(rows, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(x + self.size * self.prompt())
        return self.head(self.affine(x, self.table).sum(1))


class Affine(nn.Module):
    """A layer without a closed form, of two inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x, table):
        return torch.tanh(x * self.weight * table.sum())


def masked(m, x):
    """Attention whose mask has as many rows as there are tokens."""
    return m.head(m.attend(x, x, x, attn_mask=m.mask, need_weights=False)[0].sum(1))


def sometimes_attends(m, x):
    """Attention that only samples with something in them reach."""
    there = (x[:, :1, :1] > 0).to(x)
    return m.head((x + there * m.attend(x, x, x, need_weights=False)[0]).sum(1))


def unused(m, x):
    """A head that nothing reads, and one behind a scale of zero."""
    return m.head(torch.tanh(m.trunk(x))) + 0 * m.dead(x)


def last_step():
    """The last step of a recurrent layer."""
    return Of(lambda m, x: x[0][:, -1])
