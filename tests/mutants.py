"""Changes the code of what only decides, one place at a time, and sees whether a unit test notices.

Run by tests/mutants.sh, which says how. All changes are built at once, each behind a number that the tests
are started with: one build instead of one for each change.
"""

import collections
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import tree_sitter
import tree_sitter_rust

# Most harm first: what is lost, doubled or out of order; who acts; what is shown to others.
FILES = [
    "src/cluster/lease.rs",
    "src/cluster/view.rs",
    "src/cluster/assignment.rs",
    "src/cluster/holding.rs",
    "src/cluster/copies.rs",
    "src/gateway/seen.rs",
    "src/base/event/key.rs",
    "src/journal/runs.rs",
    "src/delivery/suspicion.rs",
    "src/delivery/route/pattern.rs",
    "src/app/cli/diagnose/removal.rs",
    "src/base/backoff.rs",
    "src/astro/session.rs",
    "src/astro/session/commands.rs",
    "src/astro/session/pace.rs",
    "src/astro/session/rooms.rs",
    "src/astro/session/subscription.rs",
    "src/astro/session/unreadable.rs",
    "src/delivery/route/redact.rs",
    "src/astro/wire.rs",
    "src/astro/wire/fast_path.rs",
]

# These need rooms that are built with everything else.
WITH_ALL = [
    "src/delivery/flight.rs",
    "src/delivery/outcome.rs",
    "src/journal/pending.rs",
]

# Without them these rooms are built whole; of the others only the files that are changed.
WHOLE = ["base", "config", "astro"]

# What changes nothing that anybody could see: file, function, change, and why.
EXPLAINED = [
    ("src/cluster/lease.rs", "renewed", "< becomes <=", "two requests of the same moment are one for the lease"),
    (
        "src/gateway/seen.rs",
        "digest",
        "hasher.write_usize(part.len()); is deleted",
        "this hasher tells the parts apart without it, which is not promised",
    ),
    (
        "src/cluster/view.rs",
        "put",
        "self.left.remove(name); is deleted",
        "that a member is there counts before that it has left, and what is older is forgotten first",
    ),
    ("src/cluster/copies.rs", "read", "^ becomes |", "another digest of the same two parts"),
    ("src/cluster/copies.rs", "read", ">= becomes >", "one pair more or less in eighty messages"),
    ("src/astro/session.rs", "restored", "session.link.restored = true; is deleted", "the log says so, no more"),
    (
        "src/astro/session/commands.rs",
        "send_next",
        "refusal.log(&entry.wanted.subscription); is deleted",
        "the log says so, no more",
    ),
    (
        "src/astro/session/commands.rs",
        "on_response",
        "refusal.log(&entry.wanted.subscription); is deleted",
        "the log says so, no more",
    ),
    ("src/astro/session/commands.rs", "repeat_unsubscribes", ">= becomes >", "the log says so, no more"),
    ("src/astro/session/commands.rs", "repeat_unsubscribes", ">= becomes <", "the log says so, no more"),
    ("src/astro/session/subscription.rs", "log", "does nothing", "the log says so, no more"),
    (
        "src/astro/session/rooms.rs",
        "source",
        "known.rooms.insert(room.into(), Heard { place: Arc::clone(&p is deleted",
        "it is put in with the next message, and what is no channel's is not counted",
    ),
    ("src/delivery/outcome.rs", "accepted", "guard becomes true", "the same samples, one by one"),
    ("src/delivery/outcome.rs", "report", "> becomes >=", "nothing is added, and the same is shown again"),
    (
        "src/delivery/outcome.rs",
        "failed",
        "self.flight.stale = true; is deleted",
        "what fails is recalled before, or the connection ends, which is the same",
    ),
    ("src/delivery/outcome.rs", "report", "! is deleted", "the log says so, no more"),
    ("src/delivery/route/redact.rs", "scalar", "> becomes >=", "it was read as JSON before: no value is empty"),
    ("src/base/event/key.rs", "visit_map", "+ becomes -", "other bits, and the slower reader finds the same"),
]

OTHER = {
    "==": ["!="], "!=": ["=="], "<": ["<=", ">"], ">": [">=", "<"], "<=": ["<", ">"], ">=": [">", "<"],
    "&&": ["||"], "||": ["&&"], "+": ["-", "*"], "-": ["+"], "*": ["+"], "/": ["*"], "%": ["+"],
    ">>": ["<<"], "<<": [">>"], "&": ["|"], "|": ["&"], "^": ["|"],
}  # fmt: skip
OTHER_ASSIGNMENT = {"+=": "-=", "-=": "+=", "*=": "+=", "|=": "&=", "&=": "|="}
AS_IT_IS = {
    "const_item", "static_item", "macro_definition", "macro_invocation", "attribute_item", "use_declaration",
    "line_comment", "block_comment", "type_arguments", "array_type",
}  # fmt: skip

# Seconds of processor time after which a run of the tests counts as one that does not end.
PATIENCE = 5

SWITCH = """
pub fn mutant(number: u32) -> bool {
    static CHOSEN: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| std::env::var("MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0)) == number
}
"""


def values(kind):
    """What a function of this type answers instead."""
    kind = kind.strip()
    if kind == "bool":
        return ["true", "false"]
    if kind in ("u8", "u16", "u32", "u64", "u128", "usize", "i64", "Seq", "UnixMillis"):
        return ["0", "1"]
    if kind == "Duration":
        return ["std::time::Duration::ZERO"]
    if kind.startswith(("Option<", "Vec<", "String", "BTreeSet<", "BTreeMap<", "HashMap<", "HashSet<")):
        return ["Default::default()"]
    return []


class Mutants:
    """The changes of all files; those in `unusable` do not compile and are left out."""

    def __init__(self, unusable):
        self.parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))
        self.unusable, self.all, self.function = unusable, [], ""

    def of(self, file, source):
        """The file with every change in it. Lines stay lines, so that the compiler's words fit."""
        self.file, self.source = file, source
        return self.inside(self.parser.parse(source).root_node)

    def text(self, node):
        return self.source[node.start_byte : node.end_byte].decode()

    def number(self, node, change):
        self.all.append((self.file, node.start_point[0] + 1, self.function, change))
        number = len(self.all)
        return None if (self.file, node.start_point[0] + 1, change) in self.unusable else number

    def inside(self, node):
        parts, at, of_tests = [], node.start_byte, False
        for child in node.children:
            parts.append(self.source[at : child.start_byte].decode())
            text = self.text(child)
            if of_tests and "comment" not in child.type:
                parts.append(text)
                of_tests = child.type == "attribute_item"
            else:
                of_tests = child.type == "attribute_item" and "cfg(test)" in text
                parts.append(self.changed(child))
            at = child.end_byte
        return "".join(parts) + self.source[at : node.end_byte].decode()

    def changed(self, node):
        if node.type in AS_IT_IS or not node.children:
            return self.text(node)
        return getattr(self, node.type, self.inside)(node)

    def lines(self, node, result):
        """What stands there more than once now, in as many lines as before."""
        return " ".join(result.split("\n")) + "\n" * (node.end_point[0] - node.start_point[0])

    def binary_expression(self, node):
        if "//" in self.text(node):
            return self.inside(node)
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        sign = node.child_by_field_name("operator")
        operator = self.text(sign)
        left, right = self.changed(left), self.changed(right)
        result = f"{left} {operator} {right}"
        for other in OTHER.get(operator, []):
            if number := self.number(sign, f"{operator} becomes {other}"):
                result = f"(if crate::mutant({number}) {{ {left} {other} {right} }} else {{ {result} }})"
        return self.lines(node, result)

    def compound_assignment_expr(self, node):
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        sign = node.child_by_field_name("operator")
        operator = self.text(sign)
        if "//" in self.text(node):
            return self.inside(node)
        left, right = self.changed(left), self.changed(right)
        result, other = f"{left} {operator} {right}", OTHER_ASSIGNMENT.get(operator)
        if other and (number := self.number(sign, f"{operator} becomes {other}")):
            result = f"if crate::mutant({number}) {{ {left} {other} {right} }} else {{ {result} }}"
        return self.lines(node, result)

    def unary_expression(self, node):
        if self.text(node.children[0]) != "!":
            return self.inside(node)
        value = self.changed(node.children[1])
        number = self.number(node, "! is deleted")
        result = f"(if crate::mutant({number}) {{ {value} }} else {{ !{value} }})" if number else f"!{value}"
        return self.lines(node, result)

    def expression_statement(self, node):
        whole = self.inside(node)
        if node.children[0].type not in ("call_expression", "assignment_expression") or "?" in self.text(node):
            return whole
        number = self.number(node, f"{' '.join(self.text(node).split())[:60]} is deleted")
        return f"if !crate::mutant({number}) {{ {whole} }}" if number else whole

    def match_pattern(self, node):
        guard = node.child_by_field_name("condition")
        if guard is None or guard.type in ("let_condition", "let_chain"):
            return self.inside(node)
        before = self.source[node.start_byte : guard.start_byte].decode()
        condition = self.changed(guard)
        always, never = self.number(guard, "guard becomes true"), self.number(guard, "guard becomes false")
        if always and never:
            return f"{before}(crate::mutant({always}) || (!crate::mutant({never}) && ({condition})))"
        return before + condition

    def function_item(self, node):
        body, answer = node.child_by_field_name("body"), node.child_by_field_name("return_type")
        head = self.source[node.start_byte : body.start_byte].decode()
        if "const fn" in head:
            return self.text(node)
        outer, self.function = self.function, self.text(node.child_by_field_name("name"))
        instead = ""
        for value in [""] if answer is None else values(self.text(answer)):
            if number := self.number(node, f"answers {value}" if value else "does nothing"):
                instead += f" if crate::mutant({number}) {{ return {value}; }}"
        inside = self.inside(body)
        self.function = outer
        return f"{head}{{{instead}{inside[1:]}"


def module_of(file):
    return file.removeprefix("src/").removesuffix(".rs").split("/")


def library(root, files):
    """A library of the whole rooms and the single files, each where it belongs; or all there is."""
    if not set(WITH_ALL).isdisjoint(files):
        return "#![allow(warnings)]\n" + (root / "src/lib.rs").read_text() + SWITCH
    tree = {}
    for file in files:
        *rooms, name = module_of(file)
        if rooms[0] not in WHOLE:
            inner = tree
            for room in rooms:
                inner = inner.setdefault(room, {})
            inner[name] = None

    def written(tree):
        return "".join(
            f"pub mod {name};\n" if inner is None else f"pub mod {name} {{\n{written(inner)}}}\n"
            for name, inner in tree.items()
        )

    return "#![allow(warnings)]\n" + "".join(f"pub mod {room};\n" for room in WHOLE) + written(tree) + SWITCH


def tests_of(root, file):
    """The tests that have to notice: the file's own, and those of the module that it is a part of."""
    module = module_of(file)
    own = "mod tests" in (root / file).read_text()
    around = ["::".join(module[:-1]) + "::"] if len(module) > 2 else []
    return ["::".join(module) + "::"] * (own or not around) + around


def build(root, copy, files):
    """Builds all changes; answers them and the program that runs the tests."""
    unusable = set()
    for _ in range(5):
        mutants = Mutants(unusable)
        for file in files:
            (copy / file).write_text(mutants.of(file, (root / file).read_bytes()))
        (copy / "src/lib.rs").write_text(library(root, files))
        command = ["cargo", "test", "--locked", "--workspace", "--lib", "--no-run", "--message-format=short"]
        settings = {
            "CARGO_PROFILE_DEV_DEBUG": "false",
            "CARGO_INCREMENTAL": "0",
            "CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(root / "target")),
        }
        done = subprocess.run(command, cwd=copy, env=os.environ | settings, capture_output=True, text=True)
        lines = done.stderr.splitlines()
        if done.returncode == 0:
            found = [line for line in lines if "Executable" in line and "src/lib.rs (" in line and "astro_relay" in line]
            return mutants, copy / found[0].split("(")[-1].rstrip(")")
        places = {tuple(line.split(":")[:2]) for line in lines if ": error" in line}
        there = [(file, line, change) for file, line, _, change in mutants.all if (file, str(line)) in places]
        # Mostly it is a sum of what cannot be multiplied, then another one: the line's other changes are good.
        for likely in (("+ becomes *",), ("becomes +", "becomes *", "becomes -"), ("",)):
            if new := {one for one in there if one[2].endswith(likely)} - unusable:
                break
        if not new:
            sys.exit(done.stderr)
        unusable |= new
    sys.exit("some changes do not compile, and it cannot be found out which")


def run(program, copy, tests, number):
    """Whether the tests pass with this change. In the copy: failures of property tests are written down there."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))  # noqa: E731
    settings = {"MUTANT": str(number), "PROPTEST_CASES": "64"}
    command = [program, "--test-threads=1", tests]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | settings,
            preexec_fn=limit,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 30,
        )
    except subprocess.TimeoutExpired:
        return False
    if number == 0 and (done.returncode != 0 or "running 0 tests" in done.stdout):
        sys.exit(f"{tests} has no tests, or they fail as it is:\n{done.stdout}")
    return done.returncode == 0


def noticed_in(root, copy, files):
    """Makes all changes of these files, and prints those that no test notices; answers how many of each kind."""
    began = time.monotonic()
    mutants, program = build(root, copy, files)
    built = time.monotonic()
    explained = {(file, function, change) for file, function, change, _ in EXPLAINED}
    counts = collections.Counter(changes=len(mutants.all), files=len(files))
    for file in files:
        for tests in tests_of(root, file):
            run(program, copy, tests, 0)
    for number, (file, line, function, change) in enumerate(mutants.all, 1):
        if (file, line, change) in mutants.unusable:
            counts["left out"] += 1
        elif not all(run(program, copy, tests, number) for tests in tests_of(root, file)):
            counts["noticed"] += 1
        elif (file, function, change) in explained:
            counts["explained"] += 1
        else:
            counts["missed"] += 1
            print(f"{file}:{line} ({function}): {change}", flush=True)
    counts["build"], counts["run"] = round(built - began), round(time.monotonic() - built)
    return counts


def main():
    root = Path(__file__).resolve().parent.parent
    files = sys.argv[1:] or FILES + WITH_ALL
    copy = root / "target/mutants/tree"
    shutil.rmtree(copy, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    counts = collections.Counter()
    for with_all in (False, True):
        if some := [file for file in files if (file in WITH_ALL) == with_all]:
            counts += noticed_in(root, copy, some)
            for file in some:
                shutil.copy2(root / file, copy / file)
    print(
        f"{counts['changes']} changes in {counts['files']} files: {counts['noticed']} noticed, "
        f"{counts['missed']} not noticed, {counts['explained']} explained, {counts['left out']} do not compile; "
        f"{counts['build']} s to build, {counts['run']} s to run"
    )
    sys.exit(counts["missed"] > 0)


main()
