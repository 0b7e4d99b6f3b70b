"""All mutants of a source in one text: whichever is on, the others are as if they were not there.

A mutated branch holds the operands as they were written; only the branch that is taken while no mutant of its place is
on has mutants inside. So the text grows with the number of mutants, not with its square.
"""

import rust

AT = "crate::mutation::at"


class Woven:
    """The text, and where in it each mutant lies, and each place with all of its mutants (start, end, mutants, whether all)."""

    def __init__(self, source, sites):
        self.source, self.out, self.ranges = source, bytearray(), []
        alive = [site for site in sites if any(mutant.state == "alive" for mutant in site.mutants)]
        edits = {}
        for site in alive:
            start, end = span(site)
            # Outer places before those within them; a guard before the expression that it is.
            edits.setdefault((start, -end, site.kind not in {"arm", "guard"}), []).append(site)
        self.edits = sorted(edits.items(), key=lambda edit: edit[0])
        self.next = 0
        self.copy(0, len(source))

    def put(self, text):
        self.out += text.encode() if isinstance(text, str) else text

    def copy(self, start, end):
        """A part of the source, with what is woven into it."""
        while self.next < len(self.edits) and self.edits[self.next][0][0] < end:
            (first, last, _), sites = self.edits[self.next]
            last = -last
            self.next += 1
            self.put(self.source[start:first])
            self.weave(sites, first, last)
            start = last
        self.put(self.source[start:end])

    def weave(self, sites, start, end):
        began = len(self.out)
        kinds = {site.kind: site for site in sites}
        if "arm" in kinds or "guard" in kinds:
            self.weave_guard(kinds.get("arm"), kinds.get("guard"), start, end)
        else:
            (site,) = sites
            getattr(self, f"weave_{site.kind}")(site, start, end)
        self.ranges.extend((began, len(self.out), site.mutants, True) for site in sites)

    def choose(self, site, branch="{}", end=","):
        """The branches of a place's mutants."""
        self.put(f"(match {AT}({site.mutants[0].id}) {{ ")
        for at, mutant in enumerate(site.mutants):
            if mutant.state == "alive":
                self.put(f"{at} => ")
                self.mark(mutant, branch.format(mutant.code))
                self.put(f"{end} ")

    def mark(self, mutant, text):
        began = len(self.out)
        self.put(text)
        self.ranges.append((began, len(self.out), [mutant], False))

    def weave_binary(self, site, start, end):
        self.choose(site)
        self.put("_ => (")
        self.copy(start, end)
        self.put(") })")

    weave_unary = weave_binary

    def weave_body(self, site, start, end):
        self.choose(site, "return {}")
        self.put("_ => {} });")

    def weave_iterator(self, site, start, end):
        self.put("{ ")
        self.choose(site, "crate::mutation::Either::Left({}.into_iter())")
        self.put("_ => crate::mutation::Either::Right(")
        self.copy(start, end)
        self.put(") }) }")

    def weave_guard(self, arm, guard, start, end):
        parts = []
        if guard is None:
            self.put(" if ")
        if arm is not None:
            self.mark(arm.mutants[0], f"{AT}({arm.mutants[0].id}) != 0")
            if guard is not None or start != end:
                self.put(" && ")
        if guard is not None:
            self.choose(guard)
            self.put("_ => (")
            self.copy(start, end)
            self.put(") })")
        elif start != end:
            self.put("(")
            self.copy(start, end)
            self.put(")")


def span(site):
    node = site.node
    if site.kind == "body":
        return node.start_byte + 1, node.start_byte + 1
    if site.kind == "arm":
        guard = node.child_by_field_name("condition")
        return (guard.start_byte, guard.end_byte) if guard else (node.end_byte, node.end_byte)
    return node.start_byte, node.end_byte


def without_const(source, root, kept):
    """The source with `const fn`s made plain ones, of the same length: a constant cannot ask which mutant is on."""
    out = bytearray(source)
    todo = [root]
    while todo:
        node = todo.pop()
        todo.extend(node.named_children)
        if node.type == "function_item" and rust.is_const_fn(node):
            if rust.text(node.child_by_field_name("name")) not in kept:
                at = source.index(b"const", node.start_byte)
                out[at : at + 5] = b"     "
    return bytes(out)
