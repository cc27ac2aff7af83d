"""The network's invariants on random weights: what must be equal, and equal to the bit."""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deferred import later
from draws import normal
from random_models import TINY, replace, sharp_params

from jax_llama3 import Cache, Params, decode, forward, init_cache, prefill
from jax_llama3.decoding.programs import choose_ops, decode_step
from jax_llama3.kernels.cpu.attention import attend_whole
from jax_llama3.model.layers import rms_norm
from jax_llama3.model.ops import PLAIN, Ops
from jax_llama3.model.taps import no_tap
from jax_llama3.runtime.compilation import count_compilations

PARAMS = sharp_params(3, TINY)
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (3, 40), np.int32)
CLOSE = {"rtol": 0, "atol": 2e-5}
jitted = jax.jit(forward, static_argnames=("config", "tap", "ops"))


@pytest.fixture(scope="module")
def whole(ops: Ops | None) -> np.ndarray:
    return np.asarray(jitted(PARAMS, TOKENS, TINY, ops=ops)[0])


def empty(batch: int = 3, capacity: int = 64) -> Cache:
    return init_cache(TINY, batch, capacity, np.float32)


def test_prefill_and_decode_equal_one_forward(whole: np.ndarray, ops: Ops | None) -> None:
    logits, cache = prefill(PARAMS, TOKENS[:, :30], np.array([30, 30, 30]), empty(), TINY, ops=ops)
    for position in range(30, 40):
        np.testing.assert_allclose(logits, whole[:, position - 1], **CLOSE)
        logits, cache = decode(PARAMS, TOKENS[:, position], cache, TINY, ops=ops)
    np.testing.assert_allclose(logits, whole[:, 39], **CLOSE)
    assert cache.lengths.tolist() == [40, 40, 40]


@pytest.mark.parametrize("cuts", [[1, 39], [7, 16, 17], [40], [13] * 3 + [1]])
def test_chunked_forward_equals_whole(whole: np.ndarray, cuts: list[int], ops: Ops | None) -> None:
    cache, start, parts = empty(), 0, []
    for size in cuts:
        logits, cache = jitted(PARAMS, TOKENS[:, start : start + size], TINY, cache, ops=ops)
        parts.append(logits)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, **CLOSE)


@pytest.mark.parametrize("capacity", [256, 300, 512, 1024])
def test_decoding_over_the_borders_of_what_attention_reads(capacity: int, ops: Ops | None) -> None:
    tokens = np.random.default_rng(3).integers(0, TINY.vocab_size, (2, 260))
    expected, _ = jitted(PARAMS, tokens, TINY, ops=ops)
    logits, cache = prefill(
        PARAMS, tokens[:, :253], np.array([253, 100]), empty(2, capacity), TINY, ops=ops
    )
    np.testing.assert_allclose(logits[0], expected[0, 252], **CLOSE)
    np.testing.assert_allclose(logits[1], expected[1, 99], **CLOSE)
    for step in range(min(capacity, 260) - 253):
        new = np.array([tokens[0, 253 + step], tokens[1, 100 + step]])
        logits, cache = decode(PARAMS, new, cache, TINY, ops=ops)
        np.testing.assert_allclose(logits[0], expected[0, 253 + step], **CLOSE)
        np.testing.assert_allclose(logits[1], expected[1, 100 + step], **CLOSE)


def test_chunked_prefill_equals_whole(whole: np.ndarray, ops: Ops | None) -> None:
    _, cache = prefill(PARAMS, TOKENS[:, :20], np.array([20, 9, 1]), empty(), TINY, ops=ops)
    rest = np.stack([TOKENS[0, 20:37], TOKENS[1, 9:26], TOKENS[2, 1:18]])
    logits, cache = prefill(PARAMS, rest, np.array([17, 5, 16]), cache, TINY, ops=ops)
    assert cache.lengths.tolist() == [37, 14, 17]
    np.testing.assert_allclose(logits, whole[[0, 1, 2], [36, 13, 16]], **CLOSE)


def test_a_row_in_a_ragged_batch_equals_the_row_alone(ops: Ops | None) -> None:
    lengths = np.array([40, 3, 17])
    logits, cache = prefill(PARAMS, TOKENS, lengths, empty(), TINY, ops=ops)
    batched, _ = decode(PARAMS, TOKENS[:, 5], cache, TINY, ops=ops)
    for row, length in enumerate(lengths):
        alone, cache = prefill(
            PARAMS, TOKENS[row : row + 1, :length], lengths[row : row + 1], empty(1), TINY, ops=ops
        )
        np.testing.assert_allclose(alone[0], logits[row], **CLOSE)
        alone, _ = decode(PARAMS, TOKENS[row : row + 1, 5], cache, TINY, ops=ops)
        np.testing.assert_allclose(alone[0], batched[row], **CLOSE)


@pytest.mark.parametrize("capacity", [40, 41, 64, 200])
@pytest.mark.parametrize("padding", [0, 5])
def test_capacity_padding_and_stale_slots_never_matter(
    whole: np.ndarray, capacity: int, padding: int, ops: Ops | None
) -> None:
    cache = empty(3, capacity)
    stale = tuple(jnp.full_like(k, 1e4) for k in cache.k)
    cache = cache._replace(k=stale, v=tuple(-k for k in stale))
    padded = np.pad(TOKENS[:, :35], ((0, 0), (0, padding)), constant_values=7)
    logits, cache = prefill(PARAMS, padded, np.array([35, 35, 35]), cache, TINY, ops=ops)
    np.testing.assert_allclose(logits, whole[:, 34], **CLOSE)
    logits, _ = decode(PARAMS, TOKENS[:, 35], cache, TINY, ops=ops)
    np.testing.assert_allclose(logits, whole[:, 35], **CLOSE)


def test_padding_beyond_a_full_cache_overwrites_nothing(whole: np.ndarray, ops: Ops | None) -> None:
    for chunk in ([40], [20, 20]):  # padded to 64, or to 32
        cache, at = empty(3, 40), 0
        for new in chunk:
            part = TOKENS[:, at : at + new]
            logits, cache = prefill(PARAMS, part, np.array([new] * 3), cache, TINY, ops=ops)
            at += new
        np.testing.assert_allclose(logits, whole[:, 39], **CLOSE)
        # The last slot holds the last token's own key.
        _, room = prefill(PARAMS, TOKENS, np.array([40] * 3), empty(3, 64), TINY, ops=ops)
        np.testing.assert_allclose(cache.k[1][:, :40], room.k[1][:, :40], **CLOSE)


def test_a_later_token_leaves_earlier_logits_bit_equal(whole: np.ndarray, ops: Ops | None) -> None:
    changed = TOKENS.copy()
    changed[:, 25] = (changed[:, 25] + 1) % TINY.vocab_size
    logits = np.asarray(jitted(PARAMS, changed, TINY, ops=ops)[0])
    np.testing.assert_array_equal(logits[:, :25], whole[:, :25])
    assert (logits[:, 25:] != whole[:, 25:]).any(axis=-1).all()


def test_causality_by_gradient(ops: Ops | None) -> None:
    def at(embedded: jax.Array, position: int) -> jax.Array:
        def tap(name: str, array: jax.Array) -> jax.Array:
            return embedded if name == "embed" else array

        return forward(PARAMS, TOKENS[:1], TINY, tap=tap, ops=ops)[0][0, position].sum()

    embedded = jnp.asarray(np.asarray(PARAMS.embedding)[TOKENS[:1]])
    gradient = np.asarray(jax.jit(jax.grad(at), static_argnums=1)(embedded, 20)[0])
    assert (gradient[21:] == 0).all()
    assert (np.abs(gradient[:21]).max(axis=-1) > 0).all()


def test_one_compilation_per_bucket_and_none_on_a_second_call(ops: Ops | None) -> None:
    config = replace(TINY, norm_eps=3e-5)  # a config no other test has compiled

    def run(length: int) -> None:
        _, cache = prefill(
            PARAMS, TOKENS[:1, :length], np.array([length]), empty(1), config, ops=ops
        )
        for _ in range(3):
            _, cache = decode(PARAMS, TOKENS[:1, 0], cache, config, ops=ops)

    with count_compilations() as seen:
        run(17)
    assert seen.count >= 2
    for length in (18, 32, 25, 17):
        with count_compilations() as seen:
            run(length)
        assert seen.count == 0
    with count_compilations() as seen:
        run(33)
    assert seen.count >= 1


def test_a_tap_that_was_compiled_compiles_nothing_more(ops: Ops | None) -> None:
    def run() -> None:
        lengths = np.array([17, 3, 9])
        _, cache = prefill(PARAMS, TOKENS[:, :17], lengths, empty(), TINY, tap=halve, ops=ops)
        decode(PARAMS, TOKENS[:, 0], cache, TINY, tap=halve, ops=ops)

    run()
    with count_compilations() as seen:
        run()
    assert seen.count == 0


def test_gradients_pass_through_prefill_whose_padding_exceeds_the_cache(ops: Ops | None) -> None:
    def loss(params: Params) -> jax.Array:
        return prefill(params, TOKENS[:, :18], np.array([18, 3, 9]), empty(3, 18), TINY, ops=ops)[
            0
        ].sum()

    for gradient in jax.tree.leaves(jax.grad(loss)(PARAMS)):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("batch", [1, 3, later(4), later(5), 9])
def test_every_batch_size_decodes_as_its_rows_alone(batch: int, ops: Ops | None) -> None:
    tokens = np.random.default_rng(batch).integers(0, TINY.vocab_size, (batch, 12), np.int32)
    lengths = np.arange(batch) + 3
    _, cache = prefill(PARAMS, tokens, lengths, empty(batch, 16), TINY, ops=ops)
    logits, cache = decode(PARAMS, tokens[:, 0], cache, TINY, ops=ops)
    logits, cache = decode(PARAMS, tokens[:, 1], cache, TINY, ops=ops)
    for row, length in enumerate(lengths):
        alone = np.concatenate([tokens[row, :length], tokens[row, :2]])[None]
        expected, _ = jitted(PARAMS, alone, TINY, ops=ops)
        np.testing.assert_allclose(logits[row], expected[0, -1], **CLOSE)


@pytest.mark.parametrize("tap", [no_tap, lambda name, array: array], ids=["no tap", "tap"])
def test_prefill_and_decode_donate_their_cache(tap: object, ops: Ops | None) -> None:
    cache = empty(3, 64)
    lengths = np.array([40, 40, 40])
    for step in (
        lambda cache: prefill(PARAMS, TOKENS, lengths, cache, TINY, tap=tap, ops=ops),
        lambda cache: decode(PARAMS, TOKENS[:, 0], cache, TINY, tap=tap, ops=ops),
    ):
        before = [k.unsafe_buffer_pointer() for k in cache.k]
        _, after = step(cache)
        assert [k.unsafe_buffer_pointer() for k in after.k] == before
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
        with pytest.raises(RuntimeError, match="deleted"):
            step(cache)
        cache = after


def test_the_callers_arrays_may_change_after_the_call(ops: Ops | None) -> None:
    tokens, lengths = np.array(TOKENS, np.int32), np.array([30, 12, 40], np.int32)
    expected, _ = prefill(PARAMS, tokens.copy(), lengths.copy(), empty(), TINY, ops=ops)
    jax.block_until_ready(expected)
    for _ in range(10):
        mine = lengths.copy()
        logits, cache = prefill(PARAMS, tokens, mine, empty(), TINY, ops=ops)
        mine[:] = 1
        np.testing.assert_array_equal(logits, expected)
        np.testing.assert_array_equal(cache.lengths, lengths)


def test_a_prefill_that_cannot_begin_leaves_the_cache(ops: Ops | None) -> None:
    broken = PARAMS._replace(
        layers=tuple(layer._replace(wq=layer.wq[:, :, :5]) for layer in PARAMS.layers)
    )
    cache = empty()
    with pytest.raises(TypeError):
        prefill(broken, TOKENS, np.array([30, 12, 40]), cache, TINY, ops=ops)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


def test_the_cache_keeps_old_keys_bit_equal(ops: Ops | None) -> None:
    _, cache = prefill(PARAMS, TOKENS, np.array([30, 12, 40]), empty(), TINY, ops=ops)
    old = np.asarray(cache.k[1])
    _, cache = decode(PARAMS, TOKENS[:, 0], cache, TINY, ops=ops)
    for row, length in enumerate((30, 12, 40)):
        np.testing.assert_array_equal(np.asarray(cache.k[1])[row, :length], old[row, :length])


NAMES = ["embed", "final_norm", "logits"] + [
    f"layers.{layer}.{name}"
    for layer in range(TINY.n_layers)
    for name in "resid_pre attn.q attn.k attn.v attn.scores attn.pattern attn.z attn.out "
    "resid_mid mlp.gate mlp.up mlp.out resid_post".split()
]


def shapes(batch: int, new: int, keys: int) -> dict[str, tuple[int, ...]]:
    c = TINY
    by_name = {
        "q": (batch, new, c.n_heads, c.head_dim),
        "z": (batch, new, c.n_heads, c.head_dim),
        "k": (batch, new, c.n_kv_heads, c.head_dim),
        "v": (batch, new, c.n_kv_heads, c.head_dim),
        "scores": (batch, c.n_heads, new, keys),
        "pattern": (batch, c.n_heads, new, keys),
        "gate": (batch, new, c.ffn_dim),
        "up": (batch, new, c.ffn_dim),
        "logits": (batch, new, c.vocab_size),
    }
    return {name: by_name.get(name.split(".")[-1], (batch, new, c.dim)) for name in NAMES}


def record(
    params: Params, tokens: np.ndarray, cache: Cache | None, ops: Ops | None
) -> dict[str, jax.Array]:
    seen: dict[str, jax.Array] = {}

    def tap(name: str, array: jax.Array) -> jax.Array:
        assert name not in seen
        seen[name] = array
        return array

    forward(params, tokens, TINY, cache, tap=tap, ops=ops)
    return seen


def test_taps_see_every_activation_under_jit_with_and_without_cache(ops: Ops | None) -> None:
    seen = jax.jit(record, static_argnums=3)(PARAMS, TOKENS, None, ops)
    assert {name: array.shape for name, array in seen.items()} == shapes(3, 40, 40)
    np.testing.assert_allclose(seen["layers.1.attn.pattern"].sum(-1), 1, rtol=1e-5)
    assert (np.triu(seen["layers.0.attn.pattern"], 1) == 0).all()
    seen = jax.jit(record, static_argnums=3)(PARAMS, TOKENS[:, :1], empty(), ops)
    assert {name: array.shape for name, array in seen.items()} == shapes(3, 1, 64)


def halve(name: str, array: jax.Array) -> jax.Array:
    return array * 0.5 if name == "layers.1.mlp.out" else array


def test_a_tap_patches_the_same_way_in_forward_prefill_and_decode(ops: Ops | None) -> None:
    patched, _ = jitted(PARAMS, TOKENS, TINY, tap=halve, ops=ops)
    plain, _ = jitted(PARAMS, TOKENS, TINY, ops=ops)
    assert np.abs(patched - plain).max() > 0.01
    logits, cache = prefill(
        PARAMS, TOKENS[:, :39], np.array([39] * 3), empty(), TINY, tap=halve, ops=ops
    )
    np.testing.assert_allclose(logits, patched[:, 38], **CLOSE)
    logits, _ = decode(PARAMS, TOKENS[:, 39], cache, TINY, tap=halve, ops=ops)
    np.testing.assert_allclose(logits, patched[:, 39], **CLOSE)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("layers.0")])
def test_every_tap_replaces_what_it_sees_with_and_without_cache(
    whole: np.ndarray, name: str, ops: Ops | None
) -> None:
    def tap(seen: str, array: jax.Array) -> jax.Array:
        if seen != name:
            return array
        if name.endswith(("scores", "pattern")):
            return array * 0.7
        return array * jnp.linspace(0.5, 1.5, array.shape[-1]).reshape(
            (1,) * (array.ndim - 1) + (-1,)
        )

    replaced, _ = forward(PARAMS, TOKENS, TINY, tap=tap, ops=ops)
    assert np.abs(replaced - whole).max() > 0.01
    # Only the second part is cached with the tap: it sees old keys and values as they were.
    _, cache = forward(PARAMS, TOKENS[:, :30], TINY, empty(), tap=tap, ops=ops)
    rest, _ = forward(PARAMS, TOKENS[:, 30:], TINY, cache, tap=tap, ops=ops)
    np.testing.assert_allclose(rest, replaced[:, 30:], **CLOSE)


def test_taps_steer_under_vmap_and_grad(ops: Ops | None) -> None:
    def logit(scale: jax.Array) -> jax.Array:
        def tap(name: str, array: jax.Array) -> jax.Array:
            return array * scale if name == "layers.0.attn.z" else array

        return forward(PARAMS, TOKENS[:1, :8], TINY, tap=tap, ops=ops)[0][0, -1, 5]

    scales = jnp.array([0.0, 0.5, 1.0])
    values = jax.jit(jax.vmap(logit))(scales)
    np.testing.assert_allclose(values, [jax.jit(logit)(scale) for scale in scales], **CLOSE)
    slope = jax.jit(jax.grad(logit))(jnp.float32(0.5))
    step = 1e-2
    difference = (
        jax.jit(logit)(jnp.float32(0.5 + step)) - jax.jit(logit)(jnp.float32(0.5 - step))
    ) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_gradients_reach_every_weight(ops: Ops | None) -> None:
    def loss(params: Params) -> jax.Array:
        logits, _ = forward(params, TOKENS, TINY, ops=ops)
        return jax.nn.log_softmax(logits)[..., 0].mean()

    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(PARAMS)):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


REFUSED = {
    "id below 0": (lambda: forward(PARAMS, np.array([[-1]]), TINY), "token id -1"),
    "id at V": (lambda: decode(PARAMS, np.array([101] * 3), empty(), TINY), "token id 101"),
    "no token": (lambda: forward(PARAMS, np.zeros((1, 0), np.int32), TINY), "no token"),
    "length 0": (lambda: prefill(PARAMS, TOKENS, np.array([0, 1, 1]), empty(), TINY), "length 0"),
    "length past T": (
        lambda: prefill(PARAMS, TOKENS, np.array([1, 41, 1]), empty(), TINY),
        "length 41",
    ),
    "full cache": (lambda: forward(PARAMS, TOKENS, TINY, empty(3, 39)), "needs 40 cache slots"),
    "full row": (
        lambda: prefill(PARAMS, TOKENS, np.array([1, 40, 1]), empty(3, 39), TINY),
        "row 1 needs 40",
    ),
    "capacity 0": (lambda: empty(1, 0), "capacity must be at least 1"),
    "fewer layers": (
        lambda: forward(PARAMS._replace(layers=PARAMS.layers[:1]), TOKENS, TINY),
        "layers",
    ),
    "tied or not": (lambda: forward(PARAMS._replace(output=None), TOKENS, TINY), "tied"),
    "other batch": (lambda: forward(PARAMS, TOKENS, TINY, empty(2)), "3 rows"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_computed_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_under_a_trace_what_cannot_be_computed_is_nan(ops: Ops | None) -> None:
    for token in (101, -1, -101):
        logits, _ = jitted(PARAMS, np.array([[token]]), TINY, ops=ops)
        assert np.isnan(logits).all()
    _, cache = prefill(PARAMS, TOKENS[:, :16], np.array([16, 16, 16]), empty(3, 16), TINY, ops=ops)
    chosen = ops or choose_ops(PARAMS, 3, 1)
    step = jax.jit(partial(decode_step, config=TINY, tap=no_tap, ops=chosen))
    logits, _ = step(PARAMS, jnp.asarray(TOKENS[:, 16]), cache)
    assert np.isnan(logits).all()
    _, cache = prefill(PARAMS, TOKENS[:, :16], np.array([16, 15, 9]), empty(3, 16), TINY, ops=ops)
    two, _ = jitted(PARAMS, TOKENS[:, :2], TINY, cache, ops=ops)
    nan = np.isnan(np.asarray(two)).all(axis=-1)
    assert nan.tolist() == [[True, True], [False, True], [False, False]]
    assert np.isfinite(np.asarray(two)[~nan]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_stay_close_and_give_float32_logits(
    dtype: object, whole: np.ndarray, ops: Ops | None
) -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    cache = init_cache(TINY, 3, 64, dtype)
    logits, cache = prefill(params, TOKENS[:, :39], np.array([39] * 3), cache, TINY, ops=ops)
    assert logits.dtype == jnp.float32
    assert (
        np.mean(np.asarray(logits == logits.astype(dtype).astype(jnp.float32))) < 0.1
    )  # not rounded before
    assert cache.k[0].dtype == dtype
    assert np.abs(logits - whole[:, 38]).mean() < 0.1 * np.abs(whole[:, 38]).mean()


@pytest.mark.parametrize("new", [1, 2, 9])
def test_values_are_summed_in_float32_in_a_narrow_model(new: int) -> None:
    shapes = ((2, new, 6, 16), (2, 300, 3, 16), (2, 300, 3, 16))
    q, k, v = (normal(i, shape, jnp.bfloat16) for i, shape in enumerate(shapes))
    seen = {}

    def tap(name: str, array: jax.Array) -> jax.Array:
        seen[name] = array
        return array

    positions = jnp.full((2, new), 299)
    plain = PLAIN.attend(q, k, v, positions, tap)
    weights = np.asarray(seen["pattern"].astype(jnp.bfloat16), np.float64)
    exact = np.einsum("bnts,bsnh->btnh", weights, np.repeat(np.asarray(v, float), 2, axis=2))
    rounded = jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)
    for z in (plain, attend_whole(q, k, v, positions)):
        assert np.mean(np.asarray(z == rounded)) > 0.99


def test_fast_operations_refuse_a_tap_that_would_see_no_scores() -> None:
    fast = choose_ops(PARAMS, 3, 40)
    if fast is PLAIN:
        pytest.skip("a platform whose operations are the plain ones")
    with pytest.raises(ValueError, match="no scores to a tap"):
        forward(PARAMS, TOKENS, TINY, empty(), tap=halve, ops=fast)


def test_norm_scores_and_pattern_are_float32_in_a_narrow_model() -> None:
    x = normal(0, (1, 4, 400), jnp.bfloat16)
    weight = jnp.linspace(0.5, 1.5, 400).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(weight, float)
    # Rounded once, at the end; in between lies a tie that float32 decides otherwise.
    rounded = jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)
    assert np.mean(np.asarray(rms_norm(x, weight, 1e-5) == rounded)) > 0.99
    seen = {}

    def tap(name: str, array: jax.Array) -> jax.Array:
        seen[name] = array
        return array

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    forward(params, TOKENS, TINY, tap=tap)
    assert seen["layers.0.attn.scores"].dtype == jnp.float32
    assert seen["layers.0.attn.pattern"].dtype == jnp.float32
    q, k = (np.asarray(seen[f"layers.0.attn.{name}"], np.float32) for name in "qk")
    expected = np.einsum("btnh,bsnh->bnts", q, np.repeat(k, 3, axis=2)) / 4
    later = np.triu(np.ones((40, 40), bool), 1)
    np.testing.assert_allclose(
        seen["layers.0.attn.scores"], np.where(later, -np.inf, expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["embed", "layers.1.attn.q", "layers.0.mlp.gate", "logits"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda array: None, "NoneType"),
        (lambda array: array[..., :1], r"float32\[.*1\]"),
        (lambda array: array.astype(jnp.bfloat16), r"bfloat16\[.*\]"),
        (lambda array: 0.0, "float"),
    ],
)
def test_a_tap_that_returns_something_else_is_refused_by_name(
    name: str, change: Callable, said: str
) -> None:
    def tap(found: str, array: jax.Array) -> object:
        return change(array) if found == name else array

    config = TINY
    params, tokens = sharp_params(1, config), np.array([[3, 1, 2]])
    cache = init_cache(config, 1, 8, np.float32)
    for call in (
        lambda: forward(params, tokens, config, tap=tap),
        lambda: prefill(params, tokens, np.array([3]), cache, config, tap=tap),
    ):
        with pytest.raises(ValueError, match=rf"the tap returned {said} for {name}, which is"):
            call()


def test_tokens_without_their_axes_are_refused_in_one_line() -> None:
    # Unwrapped: the tests' checker of shapes would refuse them first.
    params, cache = sharp_params(1, TINY), init_cache(TINY, 3, 8, np.float32)
    row, rows, lengths = np.array([3, 1, 2]), np.array([[3, 1, 2]]), np.array([3])
    for door, arguments, axes in (
        (forward, (row, TINY), "B T"),
        (prefill, (row, lengths, cache, TINY), "B T"),
        (decode, (rows, cache, TINY), "B"),
    ):
        with pytest.raises(ValueError, match=rf"instead of \[{axes}\]"):
            inspect.unwrap(door)(params, *arguments)
