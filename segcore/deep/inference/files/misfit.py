"""Why a file does not hold the weights of the network that its card describes, in words for users.

Keras names the first array that it misses, by a name of its own, and says nothing of arrays that it
does not use, as where a card of depth 3 lies beside a network of depth 4. Here the shapes of all
arrays are compared, and if another number of classes explains the difference, that number is named.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.geometry import Shape

_SHOWN = 3


def misfit(card: Card, variables: bytes, model: Any, build: Callable[[int], Any]) -> str | None:
    """What the card says that the file (HDF5) does not bear out, and what to do. None: the file has
    the arrays of the card's network, and no others.

    `model` is that network; `build` makes it for any number of classes.
    """
    stored, wanted = _stored_shapes(variables), _shapes(model)
    missing, unused = wanted - stored, stored - wanted
    if not missing and not unused:
        return None
    ours = "Put the card that was written with this file beside it"
    said = f"{len(card.classes)} classes ({', '.join(card.classes)[:200]})"
    if card.vectors:
        said += f" and {card.vectors} vectors"
    found = _classes_of(card, stored, wanted, build)
    if found is None:
        what = " that the file does not have" if missing else ", and the file has others too"
        shapes = sorted(missing or unused, key=lambda each: (len(each), each))[:_SHOWN]
        return (
            f"its card describes a {card.kind} of {said} and {card.channels} band(s), with arrays"
            f"{what}, of the shapes {', '.join(map(str, shapes))}. The card was changed, or it "
            f"belongs to another file. {ours}."
        )
    vectors = f" (or for {found - 2}, and `vectors: 2`)" if not card.vectors and found > 3 else ""
    return (
        f"its card says {said}; the file has weights for {found}{vectors}. {ours}, or name as many "
        "classes in it, in the order of training."
    )


def _classes_of(
    card: Card, stored: Counter[Shape], wanted: Counter[Shape], build: Callable[[int], Any]
) -> int | None:
    """The number of classes for which the file has the arrays, and no others."""
    # The bias of a last layer has a number for each class and each part of the vectors, or for each
    # class but the background.
    biases = [shape[0] - card.vectors for shape in stored - wanted if len(shape) == 1]
    counts = {count for bias in biases for count in (bias, bias + 1)}
    return next((n for n in sorted(counts) if n > 1 and _shapes(build(n)) == stored), None)


def _shapes(model: Any) -> Counter[Shape]:
    return Counter(tuple(weight.shape) for weight in model.weights)


def _stored_shapes(content: bytes) -> Counter[Shape]:
    """The shapes of the weights in a file; what an optimiser and generators of random numbers keep
    beside them is left out.
    """
    import h5py

    shapes: Counter[Shape] = Counter()

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            shapes[item.shape] += "seed_generator" not in name

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(add)
    return shapes
