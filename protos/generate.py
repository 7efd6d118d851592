"""Regenerate the stubs: `python -m protos.generate`; with `--check`, fail when they differ from the sources."""

import sys
import tempfile
from importlib import resources
from pathlib import Path

PROTOS = Path(__file__).parent


def generate(into: Path) -> list[Path]:
    """Write the stubs (`_pb2.py`, `_pb2.pyi`) of every `.proto` below `protos/` into the folder `into`."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--python_out={into}", f"--pyi_out={into}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc refused the sources in protos/; its message stands above.")
    return sorted(into.rglob("*_pb2.py*"))


def main() -> None:
    """Regenerate in place, or compare with what is committed."""
    if "--check" not in sys.argv[1:]:
        generate(PROTOS)
        return
    with tempfile.TemporaryDirectory() as folder:
        stale = [
            stub.relative_to(folder)
            for stub in generate(Path(folder))
            if not (committed := PROTOS / stub.relative_to(folder)).exists()
            or committed.read_bytes() != stub.read_bytes()
        ]
    if stale:
        names = ", ".join(map(str, stale))
        raise SystemExit(f"protos/: {names} differ from their .proto sources; run `python -m protos.generate`.")


if __name__ == "__main__":
    main()
