"""The command that makes a model of others one that maskloom runs: convert."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from maskloom.flows.commands.messages import errors_as_messages, first_line, location_of
from maskloom.flows.terminal import line

Model = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="The folder (or zip) of a model of Hugging Face: config.json and safetensors.",
    ),
]
Target = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="NAME.keras", help="The file to write; its card goes beside it."
    ),
]


def convert(model: Model, output: Target) -> None:
    """Convert a network of Hugging Face (SegFormer) to a .keras file with its card. Other models of
    others need no conversion: see docs/others.md.
    """
    first_line(f"Reading {model}")
    from maskloom.segcore.deep.inference.card import card_name
    from maskloom.segcore.deep.inference.files.hugging_face import convert as converted
    from maskloom.segcore.errors import RecipeError
    from maskloom.segcore.storage.canonical import canonical
    from maskloom.segcore.storage.store import Store

    with errors_as_messages():
        target = location_of(output)
        folder, _, name = target.rpartition("/")
        if not name.endswith(".keras"):
            raise RecipeError(f"--output: expected a name ending in .keras; got {output}")
        store, card = Store(folder or "/"), card_name(name)
        for each in (name, card):
            if store.exists(each):
                raise RecipeError(f"--output: {store.uri(each)} is there already. Remove it first.")
        result = converted(location_of(model))
        # The card first: weights without a card are examined like foreign ones.
        store.publish(card, result.card.dump())
        store.publish(name, result.content)
        store.tidy()
        for note in result.notes:
            typer.echo(line(note), err=True)
        classes = result.card.classes
        shown = ", ".join(classes[:5]) + (" ..." if len(classes) > 5 else "")
        typer.echo(
            line(
                f"{store.uri(name)}: {result.card.kind} of {result.card.parameters:,} weights, "
                f"{len(classes)} classes ({shown}), licence {result.card.about['licence']}. Use it:"
            )
        )
        typer.echo(f"  maskloom segment IMAGE... -o OUTPUT -s network -p weights={output}")
        network = {"kind": result.card.kind, **(result.card.network or {})}
        keys = {"network": json.loads(canonical(network)), "initial": target}
        typer.echo("Or train it further, with these keys in a training recipe:")
        for key, value in keys.items():
            typer.echo(f"  {key}: {json.dumps(value)}")
