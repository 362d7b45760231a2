#!/usr/bin/env bash
# Changes the code of the rooms that only decide, one place at a time, and sees whether a unit test notices.
#
#     tests/mutants.sh                        all of them: a thousand builds, hours
#     tests/mutants.sh --shard 0/12           every twelfth
#     tests/mutants.sh -f src/astro/wire.rs   one file
#     tests/mutants.sh --list                 says what would be changed
#
# By hand; needs cargo-mutants 27: cargo install cargo-mutants --locked. Only the tests within the library are
# run: what is pure must be held by its own tests, not by a server in a room above. The tree is copied and
# built from nothing first, which takes as long as the first build of the tests.
#
# A mutant that survives (MISSED) gets a test, or a line below with the reason why it changes nothing that anybody
# could see. The outcome is in target/mutants/mutants.out.
set -euo pipefail
cd "$(dirname "$0")/.."

files=(
    src/astro/session.rs 'src/astro/session/**'     # what one connection decides
    src/astro/wire.rs 'src/astro/wire/**'           # frames
    src/base/backoff.rs
    src/base/event.rs 'src/base/event/**'           # the key by which a repeat is recognised
    src/gateway/seen.rs                             # what was received twice
    src/delivery/flight.rs src/delivery/outcome.rs  # the window: what an acknowledgement moves
    src/delivery/suspicion.rs
    src/delivery/route/redact.rs
    src/journal/pending.rs src/journal/runs.rs      # what a cursor means over runs
    'src/cluster/**'                                # who has which channel
    src/app/cli/diagnose/removal.rs
)

# Equal to the original for whoever uses it; each with its reason.
excluded=(
    'impl (fmt::)?Debug for'                        # what a secret shows of itself has tests of its own
)

arguments=()
case " $* " in
    *" -f "* | *" --file "*) ;;
    *) for file in "${files[@]}"; do arguments+=(--file "$file"); done ;;
esac
for pattern in "${excluded[@]}"; do arguments+=(--exclude-re "$pattern"); done
mkdir -p target/mutants
exec cargo mutants --no-shuffle --output target/mutants --minimum-test-timeout 120 \
    --cargo-arg=--locked "${arguments[@]}" "$@" -- --lib
