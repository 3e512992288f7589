"""Small networks with shared, tied, indexed, routed and dead parameters."""

import torch
from torch import nn
from torch.nn import functional as F


class Mean(nn.Module):
    """Mean over all dimensions but batch and one."""

    def __init__(self, keep=1):
        super().__init__()
        self.keep = keep

    def forward(self, x):
        return x.movedim(self.keep, 1).flatten(2).mean(2)


class Shared(nn.Module):
    """One layer used twice, with a residual path."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = x + torch.tanh(self.layer(x))
        return self.head(torch.tanh(self.layer(x)) + x)


class SharedConv(nn.Module):
    """One convolution used at two resolutions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        x = torch.tanh(self.conv(x))
        return self.conv(F.avg_pool2d(x, 2)).flatten(2).mean(2)


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
        self.scale = Scale()
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


class Scale(nn.Module):
    """A parameter of our own, without a closed form."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * self.gamma


class Indexed(nn.Module):
    """A parameter of shape (1, ...) whose first dimension is taken away."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(x + self.bias[0]))


class SequenceFirst(nn.Module):
    """The layer sees (T, N, C): its first dimension is not the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1).sum(1)


class Standardised(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class DataDependent(nn.Module):
    """Reads a number out of a tensor, so that a batch is not the sum of its samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        out = self.layer(x)
        return out * float(out.detach().abs().max())


class Routed(nn.Module):
    """Two experts; which one a sample goes to depends on the sample."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(5, 4)
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x):
        code, side = torch.tanh(self.trunk(x)), (x[:, 0] > 0).long()
        out = code.new_zeros(len(x), 3)
        for k, expert in enumerate(self.experts):
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


class Masked(nn.Module):
    """Attention whose mask has as many rows as there are tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("mask", torch.ones(tokens, tokens, dtype=torch.bool).triu(1))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attend(x, x, x, attn_mask=self.mask, need_weights=False)[0].sum(1))


class SometimesAttends(nn.Module):
    """Attention that only samples with something in them reach."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        there = (x[:, :1, :1] > 0).to(x)
        return self.head((x + there * self.attend(x, x, x, need_weights=False)[0]).sum(1))


class Unused(nn.Module):
    """A head that nothing reads, and one behind a scale of zero."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(5, 4)
        self.dead = nn.Linear(5, 3)
        self.unused = nn.Linear(4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x))) + 0 * self.dead(x)


class Last(nn.Module):
    """The last step of a recurrent layer."""

    def forward(self, x):
        return x[0][:, -1]
