"""The places of a source where it can be made a little wrong, and how: the kinds of cargo-mutants."""

import hashlib
import re
from dataclasses import dataclass, field

import rust
import values

OPERATORS = {
    "==": ["!="], "!=": ["=="], "&&": ["||"], "||": ["&&"],
    "<": ["==", ">", "<="], ">": ["==", "<", ">="], "<=": [">"], ">=": ["<"],
    "+": ["-", "*"], "-": ["+", "/"], "*": ["+", "/"], "/": ["%", "*"], "%": ["/", "+"],
    "<<": [">>"], ">>": ["<<"], "&": ["|", "^"], "|": ["&", "^"], "^": ["|", "&"],
    "+=": ["-=", "*="], "-=": ["+=", "/="], "*=": ["+=", "/="], "/=": ["%=", "*="], "%=": ["/=", "+="],
    "<<=": [">>="], ">>=": ["<<="], "&=": ["|="], "|=": ["&="], "^=": ["|=", "&="],
}  # fmt: skip
# Formatting is wrong or right by eye, and a longer back-off is no fault.
EXCLUDED = re.compile(r"impl (\w+::)*(Debug|Display) for|fmt::Result|back_off")


@dataclass(eq=False)
class Mutant:
    what: str
    code: str
    id: int = -1
    state: str = "alive"  # or "unviable", "const"
    site: "Site" = None

    @property
    def counts(self):
        return self.state == "alive" and not self.site.only_size

    @property
    def place(self):
        return f"{self.site.file}:{self.site.line}: {self.site.function}: {self.what}"

    @property
    def key(self):
        """The same as long as the function and what is changed in it are."""
        same = [each for each in self.site.siblings if each.what == self.what]
        return f"{self.site.file}: {self.site.function}: {self.what} #{same.index(self)} {self.site.digest}"


@dataclass(eq=False)
class Site:
    """A place with its mutants, of which one at most is on."""

    kind: str  # body, iterator, binary, unary, arm, guard
    node: object
    file: str
    function: str
    digest: str
    const: str  # the const fn around it, "const" for other constants, or ""
    only_size: bool  # whether it says how much memory is to be got ready: cargo-mutants leaves that, too
    mutants: list
    siblings: list = field(default_factory=list)

    def __post_init__(self):
        for mutant in self.mutants:
            mutant.site = self

    @property
    def line(self):
        return self.node.start_point[0] + 1


class Finder:
    def __init__(self, file, source):
        self.file, self.sites = file, []
        self.function, self.digest, self.const, self.only_size, self.siblings = "", "", "", False, []
        self.walk(rust.parse(source), "")

    def add(self, kind, node, mutants):
        mutants = [Mutant(what, code) for what, code in mutants]
        if not mutants or not self.function:
            return
        around = self.function, self.digest, self.const, self.only_size
        site = Site(kind, node, self.file, *around, mutants, self.siblings)
        self.siblings.extend(mutants)
        self.sites.append(site)

    def walk(self, node, owner):
        if node.type in rust.LEFT_OUT or rust.is_pattern(node) or rust.is_test(node):
            return
        if node.type == "function_item":
            return self.walk_function(node, owner)
        before = self.const, self.function, self.only_size
        called = node.child_by_field_name("function") if node.type == "call_expression" else None
        self.only_size |= called is not None and rust.text(called).endswith("::with_capacity")
        if node.type in rust.CONST:
            self.const = "const"
            name = node.child_by_field_name("name")
            self.function = self.function or (rust.text(name) if name else node.type)
        if node.type in {"impl_item", "trait_item"}:
            owner = rust.owner(node)
        length = node.child_by_field_name("length") if node.type == "array_expression" else None
        self.visit(node)
        for child in node.named_children:
            if child != length:
                self.walk(child, owner)
        self.const, self.function, self.only_size = before

    def walk_function(self, node, owner):
        name = rust.text(node.child_by_field_name("name"))
        name = f"{owner}::{name}" if owner else name
        returned = node.child_by_field_name("return_type")
        if EXCLUDED.search(f"{name} -> {rust.text(returned) if returned else ''}"):
            return
        before = self.function, self.digest, self.const, self.siblings
        self.function, self.siblings = name, []
        self.digest = hashlib.sha256(node.text).hexdigest()[:8]
        if rust.is_const_fn(node):
            self.const = self.const or name
        body = node.child_by_field_name("body")
        self.body(body, returned, name)
        self.walk(body, "")
        self.function, self.digest, self.const, self.siblings = before

    def body(self, body, returned, name):
        if not any(child.type not in rust.LEFT_OUT for child in body.named_children):
            return
        item = values.iterated(returned)
        kind, found = "body", values.of(returned)
        if item is not None:
            kind, found = "iterator", ["vec![]"] + [f"vec![{value}]" for value in values.of(item)]
        written = rust.one_line(body).strip("{} ")
        found = [value for value in found if value != written]
        if name.endswith("::default") and found == ["Default::default()"]:
            return
        self.add(kind, body, [(f"replace body with {value}", value) for value in found])

    def visit(self, node):
        if node.type in {"binary_expression", "compound_assignment_expr"}:
            self.binary(node)
        elif node.type == "unary_expression" and node.children[0].type in {"!", "-"}:
            sign = node.children[0].type
            operand = node.named_children[-1]
            # A literal's sign belongs to it.
            self.add("unary", node, [(f"delete {sign} before {rust.one_line(operand)[:60]}", rust.text(operand))])
        elif node.type == "match_block":
            self.arms(node)

    def binary(self, node):
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        operator = rust.text(node.child_by_field_name("operator"))
        found = []
        for other in OPERATORS.get(operator, []):
            what = f"replace {operator} with {other} in {rust.one_line(node)[:80]}"
            found.append((what, f"({rust.text(left)}) {other} ({rust.text(right)})"))
        self.add("binary", node, found)

    def arms(self, block):
        arms = [child for child in block.named_children if child.type == "match_arm"]
        patterns = [arm.child_by_field_name("pattern") for arm in arms]
        has_wild = any(rust.text(pattern) == "_" for pattern in patterns)
        for pattern in patterns:
            guard = pattern.child_by_field_name("condition")
            what = rust.one_line(pattern)
            if has_wild and what != "_":
                self.add("arm", pattern, [(f"delete match arm {what[:80]}", "")])
            if guard is not None:
                named = f"match guard {rust.one_line(guard)[:80]}"
                replaced = [value for value in ("true", "false") if value != rust.text(guard)]
                self.add("guard", guard, [(f"replace {named} with {value}", value) for value in replaced])
