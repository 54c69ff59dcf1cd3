"""Where artifacts come from, as an in-toto statement with a SLSA provenance predicate.

Layouts: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://pypi.org/project/gptoss-convert/#build-recipe-v1"
"""Names how `externalParameters` are to be read: as the recipe that `build` was given."""


def provenance(manifest: Mapping[str, Any], builder: str) -> bytes:
    """Return the statement for a build, from what its manifest says; it is not signed.

    Args:
        manifest: the contents of `manifest.json`.
        builder: URI of who ran the build, for example that of the CI workflow.
    """
    source = manifest["source"]
    files = artifact_files(manifest)
    document = {
        "_type": STATEMENT,
        "subject": [{"name": file["name"], "digest": {"sha256": file["sha256"]}} for file in files],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "recipe": {
                        "name": manifest["recipe"]["name"],
                        "digest": {"sha256": manifest["recipe"]["sha256"]},
                    },
                    "artifacts": [
                        {"name": item["name"], "to": item["to"], "options": item["options"]}
                        for item in manifest["artifacts"]
                        if "files" in item
                    ],
                },
                "internalParameters": {"libraries": manifest["libraries"]},
                "resolvedDependencies": [
                    {"name": f"{source['name']}/{file['name']}", "digest": {"sha256": file["sha256"]}}
                    for file in source["files"]
                ],
            },
            "runDetails": {
                "builder": {"id": builder, "version": {manifest["tool"]["name"]: manifest["tool"]["version"]}},
            },
        },
    }
    return (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode()


def artifact_files(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield name, size and SHA-256 of every file of every artifact that was made."""
    for artifact in manifest["artifacts"]:
        yield from artifact.get("files", ())
