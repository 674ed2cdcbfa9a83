"""Examination: create the card of a weights file that has none.

The file is untrusted, so it is loaded and run in a separate process with limits on time and memory:
`python -m maskloom.segcore.deep.inference.files.examine` reads a request (JSON) from standard input
and writes the card or an error to standard output. Whatever happens there, the caller gets a `Card`
or a `WeightsError`, and the process does not outlive the caller's (`segcore.processes.lifeline`).

What the file does not contain is assumed by convention: 8-bit pixels, scaled to 0 ... 1 unless the
network takes integers, and classes class_0, class_1 ...
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.examiners import Request, examine_file, try_network
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.processes import lifeline, limits

_BYTES = 12 << 30
LOOP_SECONDS = 60
"""What a network with loops, which may have no end, gets to run at all."""


def examine(weights: Weights, seconds: float | None = None) -> Card:
    """Determine the card of a file by running it in another process.

    `seconds` limits the time; None takes the configured limit. Raises `WeightsError` if the file is
    broken or malicious, has no per-pixel scores, or exceeds the limits on time or memory.
    """
    answer = _asked(weights, seconds)
    return Card.load(answer["card"].encode(), weights.location)


def check_end(weights: Weights) -> None:
    """Raise `WeightsError` if a network with loops, whose card spares it the examination, does not
    come to an end.
    """
    if may_be_endless(weights):
        _asked(weights, None, trial=True)


def may_be_endless(weights: Weights) -> bool:
    """Whether the file may hold a loop; only ONNX and LiteRT files can."""
    if weights.suffix == ".onnx":
        content = weights.read()
        return b"Loop" in content or b"Scan" in content
    return weights.suffix == ".tflite"


def _asked(weights: Weights, seconds: float | None, trial: bool = False) -> Mapping[str, Any]:
    seconds = limits.configured().examine if seconds is None else seconds
    request = json.dumps(
        {
            "location": weights.location,
            "sha256": weights.sha256,
            "trust": weights.trust,
            "trial": trial,
            "loop_seconds": LOOP_SECONDS,
        }
    )
    try:
        with lifeline.child_lifeline() as line:
            child = subprocess.run(
                # Import nothing from the current folder, not even a checkout of maskloom.
                [sys.executable, "-P", "-m", __name__, str(line)],
                input=request,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                pass_fds=(line,),
            )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(
            f"{weights.location} could not be examined within {seconds:.4g} s. Write a card beside "
            "it, use a smaller network, or raise "
            "limits.examine if it is only slow."
        ) from error
    lines = child.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if "error" in answer:
        raise WeightsError(answer["error"])
    if child.returncode == -signal.SIGALRM:
        raise WeightsError(
            f"{weights.location} has a loop and did not finish within {LOOP_SECONDS:g} s on a "
            "small patch: it seems to have no end. Export the network without loops."
        )
    if child.returncode != 0 or not answer:
        last = " ".join(child.stderr.strip().splitlines()[-1:])
        raise WeightsError(
            f"{weights.location} could not be examined: the process that loaded it ended with "
            f"{child.returncode} ({last[-300:]}). "
            "The file is damaged, needs too much memory, or is not what its suffix says."
        )
    found: Mapping[str, Any] = answer
    return found


def _answer(request: Mapping[str, Any]) -> dict[str, str]:
    weights = Weights(request["location"], request["sha256"], request["trust"])
    loop_seconds = request.get("loop_seconds", LOOP_SECONDS)
    try:
        if request.get("trial"):
            try_network(weights, Request(loop_seconds))
            return {"ended": weights.sha256}
        card = _card_of(weights, loop_seconds)
    except WeightsError as error:
        return {
            "error": str(error)
            if weights.location in str(error)
            else f"{weights.location}: {error}"
        }
    return {"card": card.dump().decode()}


def _card_of(weights: Weights, loop_seconds: float = LOOP_SECONDS) -> Card:
    description = weights.source().description
    halo = None if description is None else description.halo
    card = examine_file(weights, Request(loop_seconds, halo))
    if description is not None:
        card = description.complete(card)
    return dataclasses.replace(card, about={**card.about, "examined": "no card beside the file"})


def main() -> None:
    """Answer one request; entry point of the process that `examine` starts."""
    # Reserve standard output for the answer, because libraries also write to it.
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.argv[1:]:
        lifeline.exit_with_parent(int(line))
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    answer = _answer(json.load(sys.stdin))
    with os.fdopen(answers, "w") as stream:
        stream.write(f"\n{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
