"""The bill of materials of a build, in CycloneDX: artifacts as models, their files, their source, the libraries."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gptoss_convert.errors import UnsupportedError

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_NAMESPACE = uuid.UUID("6f0c9c5e-0f0b-5c43-9c1e-6b1f8b6f2c10")
"""For serial numbers that depend on the contents alone."""
_PROPERTY = "gptoss-convert:"


def bill_of_materials(manifest: Mapping[str, Any]) -> bytes:
    """Return the document for a build, from what its manifest says; the same bytes for the same manifest.

    CycloneDX 1.6, JSON. Each artifact is a component of the type `machine-learning-model` with its files as
    components, the source as ancestor, and loss class, canonical hash and verdict as properties.

    Raises:
        UnsupportedError: the library is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType, Pedigree
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise UnsupportedError(
            f"a bill of materials needs the library cyclonedx: {error}",
            hint="pip install 'gptoss-convert[release]'",
        ) from error

    def file_component(owner: str, file: Mapping[str, Any]) -> Component:
        return Component(
            type=ComponentType.FILE,
            name=file["name"],
            bom_ref=f"{owner}/{file['name']}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file["sha256"])],
        )

    source = manifest["source"]

    def ancestor(owner: str) -> Component:  # references have to be unique in the document
        return Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=source["name"],
            bom_ref=f"{owner}/source",
            components=[file_component(f"{owner}/source", file) for file in source["files"]],
        )

    models = []
    for artifact in manifest["artifacts"]:
        if "files" not in artifact:
            continue
        facts = {
            "format": artifact["format"],
            "loss": artifact["loss"],
            "canonical-hash": artifact["canonical_hash"],
            "verdict": artifact["verification"]["verdict"]["outcome"],
        }
        models.append(
            Component(
                type=ComponentType.MACHINE_LEARNING_MODEL,
                name=artifact["name"],
                bom_ref=f"artifact/{artifact['name']}",
                components=[file_component(f"artifact/{artifact['name']}", file) for file in artifact["files"]],
                pedigree=Pedigree(ancestors=[ancestor(f"artifact/{artifact['name']}")]),
                properties=[Property(name=_PROPERTY + key, value=value) for key, value in facts.items() if value],
            )
        )
    bom = Bom(components=models, serial_number=uuid.uuid5(_NAMESPACE, json.dumps(manifest, sort_keys=True)))
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the same bytes for the same manifest
    tool = manifest["tool"]
    bom.metadata.tools.components.add(
        Component(type=ComponentType.APPLICATION, name=tool["name"], version=tool["version"])
    )
    for name, version in manifest["libraries"].items():
        bom.metadata.tools.components.add(Component(type=ComponentType.LIBRARY, name=name, version=version))
    return (JsonV1Dot6(bom).output_as_string(indent=2) + "\n").encode()
