"""The reference against loops that spell the equations out, in float64."""

import math

import pytest
import torch

from lambdaresnet_zoo.layers.reference import lambda_reference, multihead_lambda_reference

B, H, N, M, K, V, U = 2, 3, 5, 7, 4, 6, 2


def _inputs(u: int | None = U, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tail = () if u is None else (u,)
    return {
        "queries": draw(B, H, N, K),
        "keys": draw(B, M, K, *tail),
        "values": draw(B, M, V, *tail),
        "embeddings": draw(N, M, K, *tail),
    }


def _loops(queries, keys, values, embeddings, mask=None, key_norm="softmax"):
    """Sums over every index, one at a time."""
    out = torch.zeros(B, H, N, V, dtype=torch.float64)
    u_depth = values.shape[3]
    for b in range(B):
        for n in range(N):
            seen = [m for m in range(M) if mask is None or mask[n, m]]
            lam = torch.zeros(K, V, dtype=torch.float64)
            for k in range(K):
                for u in range(u_depth):
                    column = [float(keys[b, m, k, u]) for m in seen]
                    if key_norm == "softmax":
                        total = sum(math.exp(x) for x in column)
                        weights = [math.exp(x) / total for x in column]
                    elif key_norm == "l2":
                        length = math.sqrt(sum(x * x for x in column))
                        weights = [x / length for x in column]
                    else:
                        weights = column
                    for weight, m in zip(weights, seen, strict=True):
                        lam[k] += (weight + embeddings[n, m, k, u]) * values[b, m, :, u]
            for h in range(H):
                out[b, h, n] = queries[b, h, n] @ lam
    return out


@pytest.mark.parametrize("key_norm", ["softmax", "l2", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_loops(key_norm, masked):
    inputs = _inputs()
    mask = None
    if masked:
        mask = torch.rand(N, M, generator=torch.Generator().manual_seed(1)) < 0.6
        mask[:, 0] = True
    expected = _loops(**inputs, mask=mask, key_norm=key_norm)
    torch.testing.assert_close(lambda_reference(**inputs, mask=mask, key_norm=key_norm), expected)


def test_intra_depth_may_be_left_out():
    inputs = _inputs(u=None)
    with_depth = {name: x if name == "queries" else x.unsqueeze(-1) for name, x in inputs.items()}
    torch.testing.assert_close(lambda_reference(**inputs), _loops(**with_depth))


def test_content_and_position_add_up():
    inputs = _inputs()
    both = lambda_reference(**inputs)
    content = lambda_reference(**{**inputs, "embeddings": None})
    position = lambda_reference(**{**inputs, "keys": None})
    torch.testing.assert_close(content + position, both)


def test_a_masked_query_is_the_query_on_its_own_context():
    inputs = _inputs()
    mask = torch.rand(N, M, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[:, 1] = True
    out = lambda_reference(**inputs, mask=mask)
    for n in range(N):
        seen = mask[n]
        alone = lambda_reference(
            inputs["queries"][:, :, n : n + 1],
            inputs["keys"][:, seen],
            inputs["values"][:, seen],
            inputs["embeddings"][n : n + 1, seen],
        )
        torch.testing.assert_close(out[:, :, n : n + 1], alone)


def test_any_non_zero_mask_is_the_same_mask():
    mask = torch.rand(N, M, generator=torch.Generator().manual_seed(2)) < 0.5
    torch.testing.assert_close(lambda_reference(**_inputs(), mask=3 * mask), lambda_reference(**_inputs(), mask=mask))


@pytest.mark.parametrize("key_norm", ["softmax", "l2", "none"])
def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients(key_norm):
    inputs = {name: x.requires_grad_() for name, x in _inputs().items()}
    mask = torch.ones(N, M, dtype=torch.bool)
    mask[2] = False
    out = lambda_reference(**inputs, mask=mask, key_norm=key_norm)
    assert out[:, :, 2].abs().max() == 0
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs.values())


def test_content_lambda_ignores_the_order_of_the_context():
    inputs = _inputs()
    order = torch.randperm(M, generator=torch.Generator().manual_seed(3))
    shuffled = {**inputs, "keys": inputs["keys"][:, order], "values": inputs["values"][:, order], "embeddings": None}
    torch.testing.assert_close(lambda_reference(**shuffled), lambda_reference(**{**inputs, "embeddings": None}))


def test_multihead_is_one_layer_a_head():
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(B, H, N, K, generator=generator, dtype=torch.float64)
    keys = torch.randn(B, H, M, K, U, generator=generator, dtype=torch.float64)
    values = torch.randn(B, H, M, V, U, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(H, N, M, K, U, generator=generator, dtype=torch.float64)
    out = multihead_lambda_reference(queries, keys, values, embeddings)
    weights = keys.softmax(2)
    lambdas = torch.einsum("bhmku,bhmvu->bhkv", weights, values)[:, :, None]
    lambdas = lambdas + torch.einsum("hnmku,bhmvu->bhnkv", embeddings, values)
    torch.testing.assert_close(out, torch.einsum("bhnk,bhnkv->bhnv", queries, lambdas))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(N, M + 1)}, r"mask must be \[N, M\] = \(5, 7\), got \(5, 8\)"),
        ({"keys": torch.zeros(B, M, K + 1, U)}, r"keys must be .*\(2, 7, 4, 2\), got \(2, 7, 5, 2\)"),
        ({"keys": torch.zeros(B, M)}, "keys must have 3 dimensions"),
        ({"values": torch.zeros(B + 1, M, V, U)}, "values has batch 3"),
        ({"embeddings": torch.zeros(N, M + 1, K, U)}, r"embeddings must be .*got \(5, 8, 4, 2\)"),
        ({"queries": torch.zeros(B, N, K)}, "queries must be"),
        ({"keys": None, "embeddings": None}, "both None"),
        ({"key_norm": "soft"}, "key_norm must be one of softmax, l2, none, got 'soft'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        lambda_reference(**{**_inputs(), **change})


def test_multihead_names_a_missing_head_axis():
    inputs = _inputs()
    with pytest.raises(ValueError, match="keys needs a head axis of 3"):
        multihead_lambda_reference(**inputs)
