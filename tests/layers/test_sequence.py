"""The sequence form: causality, scope, lengths, and the function under it."""

import pytest
import torch

from lambdaresnet_zoo.layers import LambdaSequence, lambda_reference


def test_causal_outputs_do_not_see_the_future():
    torch.manual_seed(0)
    layer = LambdaSequence(8, causal=True, scope=7)
    x = torch.randn(2, 10, 8)
    changed = x.clone()
    changed[:, 6:] += 1
    assert torch.equal(layer(x)[:, :6], layer(changed)[:, :6])
    assert not torch.allclose(layer(x)[:, 6:], layer(changed)[:, 6:])
    torch.testing.assert_close(layer(x[:, :6]), layer(x)[:, :6])  # a prefix alone gives the prefix


def test_without_causal_every_output_sees_everything():
    torch.manual_seed(0)
    layer = LambdaSequence(8, scope=3)
    x = torch.randn(1, 9, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 0].sum(), x)
    assert (gradient[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_is_the_reference(causal, n):
    torch.manual_seed(0)
    layer = LambdaSequence(6, 8, num_heads=2, query_depth=3, intra_depth=2, scope=5, causal=causal).double()
    x = torch.randn(2, n, 6, dtype=torch.float64)
    queries, keys, values = layer.qkv(x).split(layer.split_dims, -1)
    queries = layer.norm_q(queries).reshape(2, n, 2, 3).transpose(1, 2)
    embeddings = torch.zeros(n, n, 3, 2, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            if abs(j - i) <= 2:
                embeddings[i, j] = layer.table[j - i + 2]
    mask = torch.ones(n, n).tril() if causal else None
    values = layer.norm_v(values).reshape(2, n, 4, 2)
    expected = lambda_reference(queries, keys.reshape(2, n, 3, 2), values, embeddings, mask)
    torch.testing.assert_close(layer(x), expected.transpose(1, 2).reshape(2, n, 8))


def test_gradcheck():
    torch.manual_seed(0)
    layer = LambdaSequence(4, num_heads=2, query_depth=2, scope=3, causal=True).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": 4}, "scope must be odd and positive, got 4"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim_out=8"),
        ({"query_depth": 0}, "query_depth and intra_depth must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LambdaSequence(8, **options)
