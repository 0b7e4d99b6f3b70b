"""Rust as a syntax tree: walking it, and naming what stands around a place."""

import tree_sitter_rust
from tree_sitter import Language, Parser

PARSER = Parser(Language(tree_sitter_rust.language()))

# Tokens of macros are not parsed; patterns, types and constants are not evaluated when the program runs.
LEFT_OUT = {"token_tree", "macro_definition", "attribute_item", "inner_attribute_item", "line_comment", "block_comment"}
CONST = {"const_item", "static_item", "const_block", "array_type", "enum_variant", "const_parameter"}


def parse(source):
    root = PARSER.parse(source).root_node
    assert not root.has_error, "tree-sitter does not understand this source"
    return root


def text(node):
    return node.text.decode()


def one_line(node):
    return " ".join(text(node).split())


def is_const_fn(node):
    modifiers = [child for child in node.children if child.type == "function_modifiers"]
    return any("const" in text(child).split() for child in modifiers)


def is_pattern(node):
    return node.type.endswith("_pattern") and node.type != "match_pattern"


def attributes(node):
    """The attributes before an item."""
    found, before = [], node.prev_named_sibling
    while before is not None and before.type in {"attribute_item", "line_comment", "block_comment"}:
        if before.type == "attribute_item":
            found.append(one_line(before))
        before = before.prev_named_sibling
    return found


def is_test(node):
    return any(mark in {"#[cfg(test)]", "#[test]"} for mark in attributes(node))


def owner(node):
    """What an impl or trait is for, as `Name` or `Trait for Name`."""
    if node.type == "trait_item":
        return text(node.child_by_field_name("name"))
    subject = bare(node.child_by_field_name("type"))
    implemented = node.child_by_field_name("trait")
    return f"<impl {bare(implemented)} for {subject}>" if implemented else subject


def bare(node):
    """A type without its arguments."""
    if node.type == "generic_type":
        return text(node.child_by_field_name("type"))
    return one_line(node)
