#!/usr/bin/env bash
# Changes the code of what only decides, one place at a time, and sees whether a unit test notices.
#
#     tests/mutants.sh                          all files that tests/mutants.py lists
#     tests/mutants.sh src/cluster/view.rs …    these
#
# By hand. All changes are built at once, in a library of the lowest rooms and the files that are changed, or with
# everything where a file needs it; then the unit tests of each file, and of the module around it, are run for each of
# its changes: some seconds of processor time for ten of them, beside the first build of the dependencies. What nobody
# notices is printed: it gets a test, or a line with its reason in tests/mutants.py. It needs python3-venv, and takes
# the parser of Rust from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=target/mutants/tools
if ! [ -x "$tools/bin/python" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q --only-binary :all: tree-sitter==0.26.1 tree-sitter-rust==0.24.2
fi
exec "$tools/bin/python" tests/mutants.py "$@"
