"""The matrix product: every row count and dtype against numpy, sums in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from shapes import SPECS

from jax_llama3.model.linear import linear
from jax_llama3.model.ops import Ops


@pytest.mark.parametrize(("spec", "shapes"), SPECS.items(), ids=SPECS.keys())
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_equals_einsum(spec: str, shapes: tuple, dtype: object, form: Ops) -> None:
    x, weight = (normal(i, shape, dtype) for i, shape in enumerate(shapes))
    expected = np.einsum(spec, np.asarray(x, np.float32), np.asarray(weight, np.float32))
    wide = linear(spec, x, weight, jnp.float32, products=form.products)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, expected, rtol=1e-5, atol=1e-5)
    same = linear(spec, x, weight, products=form.products)
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, wide.astype(dtype))


def test_operands_of_two_dtypes_meet_in_the_wider_one(form: Ops) -> None:
    x = jnp.ones((1, 1, 8), jnp.bfloat16)
    weight = jnp.full((3, 8), 1 + 2**-12, jnp.float32)
    found = linear("BTD,FD->BTF", x, weight, jnp.float32, products=form.products)
    np.testing.assert_array_equal(found, 8 + 2**-9)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 33, 64, 65])
@pytest.mark.parametrize("width", [64, 1536])
def test_every_row_count_gives_the_row_alone(rows: int, width: int, form: Ops) -> None:
    product = jax.jit(partial(linear, "BTD,FD->BTF", dtype=jnp.float32, products=form.products))
    x = normal(0, (rows, 1, width), jnp.bfloat16)
    weight = normal(1, (16, width), jnp.bfloat16)
    together = product(x, weight)
    close = {"rtol": 1e-5, "atol": 1e-5 * (width / 64) ** 0.5}  # as the sums grow
    for row in range(rows):
        alone = product(x[row : row + 1], weight)
        np.testing.assert_allclose(together[row], alone[0], **close)


@pytest.mark.parametrize("spec", ["BTD,DF->BTF", "BDT,FD->BTF", "BTD,FE->BTF"])
def test_a_contraction_that_does_not_stand_last_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="does not contract the last axes"):
        linear(spec, jnp.ones((2, 2, 2)), jnp.ones((2, 2)))
