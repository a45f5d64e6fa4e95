#!/usr/bin/env python3
"""Builds the Debian package, from what `[package.metadata.deb]` in Cargo.toml says.

    packaging/deb.py                         from target/release/depsync, into target/debian
    packaging/deb.py --binary FILE --output DIR [--fast]

It is what `cargo deb --no-build` makes of the same section, with the tools that every Debian has (python3,
dpkg-deb): building cargo-deb itself takes longer than building depsync. Run with --assets-only, it writes
only the manual pages and completions, for `cargo deb`.
"""

import argparse
import glob
import gzip
import os
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = "target/package"
SHELLS = {"bash": "depsync", "zsh": "_depsync", "fish": "depsync.fish"}


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--binary", type=Path, default=ROOT / "target/release/depsync")
    options.add_argument("--output", type=Path, default=ROOT / "target/debian")
    options.add_argument("--fast", action="store_true", help="do not compress")
    options.add_argument("--assets-only", action="store_true")
    options = options.parse_args()
    with open(ROOT / "Cargo.toml", "rb") as file:
        package = tomllib.load(file)["package"]
    if options.assets_only:
        make_assets(options.binary, ROOT / MADE)
        return
    with tempfile.TemporaryDirectory() as work:
        print(build(package, options, Path(work)))


def make_assets(binary, made):
    """What the program writes about itself."""
    shutil.rmtree(made, ignore_errors=True)
    subprocess.run([binary, "man", made / "man"], check=True)
    for page in (made / "man").iterdir():
        with open(page, "rb") as text, gzip.GzipFile(f"{page}.gz", "wb", mtime=0) as packed:
            shutil.copyfileobj(text, packed)
        page.unlink()
    (made / "completions").mkdir()
    for shell, name in SHELLS.items():
        said = subprocess.run([binary, "completions", shell], check=True, capture_output=True)
        (made / "completions" / name).write_bytes(said.stdout)


def build(package, options, work):
    deb = package["metadata"]["deb"]
    tree, made = work / "tree", work / "made"
    make_assets(options.binary, made)
    for source, target, mode in deb["assets"]:
        place(source, tree, target, int(mode, 8), options.binary, made)
    control = tree / "DEBIAN"
    control.mkdir(mode=0o755)
    (control / "control").write_text(describe(package, deb, options.binary, work, tree))
    (control / "conffiles").write_text("".join(f"{name}\n" for name in deb["conf-files"]))
    for script in ["postinst", "prerm", "postrm"]:
        shutil.copy(ROOT / deb["maintainer-scripts"] / script, control / script)
    options.output.mkdir(parents=True, exist_ok=True)
    name = f"depsync_{version(package)}_{architecture()}.deb"
    compress = ["-Znone"] if options.fast else ["-Zxz"]
    command = ["dpkg-deb", "--root-owner-group", *compress, "--build", tree, options.output / name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return options.output / name


def place(source, tree, target, mode, binary, made):
    """Copies what a pattern stands for; a target that ends in a slash is a folder."""
    if source == "target/release/depsync":
        found = [str(binary)]
    elif source.startswith(f"{MADE}/"):
        found = glob.glob(str(made / source.removeprefix(f"{MADE}/")))
    else:
        found = glob.glob(str(ROOT / source))
    if not found:
        raise SystemExit(f"{source}: there is no such file")
    for path in sorted(found):
        to = tree / target
        if target.endswith("/"):
            to /= "depsync" if path == str(binary) else Path(path).name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
        to.chmod(mode)


def describe(package, deb, binary, work, tree):
    size = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file()) // 1024
    depends = ", ".join(libraries(binary, work) if part == "$auto" else part
                        for part in (part.strip() for part in deb["depends"].split(",")))
    description = "\n".join(f" {line.strip() or '.'}"
                            for line in deb["extended-description"].strip().split("\n"))
    return (
        f"Package: depsync\nVersion: {version(package)}\nArchitecture: {architecture()}\n"
        f"Maintainer: {deb['maintainer']}\nInstalled-Size: {size}\nDepends: {depends}\n"
        f"Recommends: {deb['recommends']}\nSection: {deb['section']}\nPriority: {deb['priority']}\n"
        f"Description: {package['description']}\n{description}\n"
    )


def version(package):
    return f"{package['version']}-1"


def architecture():
    said = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True)
    return said.stdout.strip()


def libraries(binary, work):
    """The packages of the libraries that the program is linked with."""
    if shutil.which("dpkg-shlibdeps"):
        (work / "debian").mkdir()
        (work / "debian/control").write_text("Source: depsync\n\nPackage: depsync\nArchitecture: any\n")
        command = ["dpkg-shlibdeps", "-O", f"-e{os.path.abspath(binary)}"]
        said = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if said.returncode == 0:
            return said.stdout.strip().removeprefix("shlibs:Depends=")
    return "libc6 (>= 2.36), libgcc-s1"


if __name__ == "__main__":
    main()
