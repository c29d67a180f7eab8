"""`{card-schema}`: the JSON schema of an artifact's card, from the models that read it."""

from __future__ import annotations

import json
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class CardSchema(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        from secateurs.artifact import Card

        text = json.dumps(Card.model_json_schema(), indent=2, ensure_ascii=False)
        return [nodes.literal_block(text, text, language="json")]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("card-schema", CardSchema)
    return {"parallel_read_safe": True}
