"""Regenerate the stubs: `python -m protos.generate`; with `--check`, fail when they differ from the sources."""

import sys
import tempfile
from importlib import resources
from pathlib import Path

PROTOS = Path(__file__).parent


def generate(into: Path) -> list[Path]:
    """Write the stubs of every `.proto` below `protos/` into the folder `into`, under `protos/` there.

    Messages become `_pb2.py` and `_pb2.pyi`, the services of `control.proto` `_pb2_grpc.py`.
    """
    from grpc_tools import protoc

    root = PROTOS.parent  # so that a stub imports another by its whole name
    sources = sorted(str(path.relative_to(root)) for path in PROTOS.rglob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{root}", f"-I{well_known}", f"--python_out={into}", f"--pyi_out={into}", *sources]
    services = ["protoc", f"-I{root}", f"-I{well_known}", f"--grpc_python_out={into}", "protos/locum/v1/control.proto"]
    if protoc.main(arguments) != 0 or protoc.main(services) != 0:
        raise SystemExit("protoc refused the sources in protos/; its message stands above.")
    return sorted((into / "protos").rglob("*_pb2*.py*"))


def main() -> None:
    """Regenerate in place, or compare with what is committed."""
    if "--check" not in sys.argv[1:]:
        generate(PROTOS.parent)
        return
    with tempfile.TemporaryDirectory() as folder:
        stale = [
            stub.relative_to(folder)
            for stub in generate(Path(folder))
            if not (committed := PROTOS.parent / stub.relative_to(folder)).exists()
            or committed.read_bytes() != stub.read_bytes()
        ]
    if stale:
        names = ", ".join(map(str, stale))
        raise SystemExit(f"{names} differ from their .proto sources; run `python -m protos.generate`.")


if __name__ == "__main__":
    main()
