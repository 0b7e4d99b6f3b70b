"""The trivial values that a function's body is replaced by, from the type that it returns."""

from rust import text

BOXES = {"Box", "Arc", "Rc", "Cell", "RefCell", "Mutex", "RwLock"}
COLLECTIONS = {"VecDeque", "BinaryHeap", "BTreeSet", "BTreeMap", "HashSet", "HashMap"}


def of(node):
    """Expressions of a type; not all of them compile."""
    if node is None or node.type == "unit_type":
        return ["()"]
    if node.type == "primitive_type":
        return primitive(text(node))
    if node.type == "never_type":
        return []
    if node.type == "tuple_type":
        return tuples([of(child) for child in node.named_children])
    if node.type == "reference_type":
        return references(node)
    if node.type == "array_type" and node.child_by_field_name("length"):
        length = text(node.child_by_field_name("length"))
        return [f"[{value}; {length}]" for value in of(node.child_by_field_name("element"))]
    if node.type == "generic_type":
        return generic(node)
    if text(node) == "String":
        return ["String::new()", '"xyzzy".into()']
    return ["Default::default()"]


def primitive(name):
    if name == "bool":
        return ["true", "false"]
    if name[0] == "u":
        return ["0", "1"]
    if name[0] == "i":
        return ["0", "1", "-1"]
    if name[0] == "f":
        return ["0.0", "1.0", "-1.0"]
    return ["Default::default()"]


def tuples(parts):
    rows = [""]
    for values in parts:
        rows = [f"{row}{value}, " for row in rows for value in values]
    return [f"({row.strip()})" for row in rows]


def references(node):
    inner = node.child_by_field_name("type")
    if any(child.type == "mutable_specifier" for child in node.children):
        return [f"Box::leak(Box::new({value}))" for value in of(inner)]
    if text(inner) == "str":
        return ['""', '"xyzzy"']
    if inner.type == "array_type" and not inner.child_by_field_name("length"):
        element = of(inner.child_by_field_name("element"))
        return ["Vec::leak(Vec::new())"] + [f"Vec::leak(vec![{value}])" for value in element]
    return [f"&{value}" for value in of(inner)]


def generic(node):
    name = text(node.child_by_field_name("type")).split("::")[-1]
    arguments = node.child_by_field_name("type_arguments").named_children
    arguments = [each for each in arguments if each.type != "lifetime"]
    first = of(arguments[0]) if arguments else []
    if name == "Result":
        return [f"Ok({value})" for value in first]
    if name == "Option":
        return ["None"] + [f"Some({value})" for value in first]
    if name == "Vec":
        return ["vec![]"] + [f"vec![{value}]" for value in first]
    if name in BOXES:
        return [f"{name}::new({value})" for value in first]
    if name in COLLECTIONS:
        items = first if len(arguments) == 1 else tuples([of(each) for each in arguments])
        path = f"std::collections::{name}"
        return [f"{path}::new()"] + [f"{path}::from_iter([{item}])" for item in items]
    return ["Default::default()"]


def iterated(node):
    """The item's type of an `impl Iterator`, or nothing."""
    if node is None or node.type not in {"bounded_type", "abstract_type"}:
        return None
    todo = [node]
    while todo:
        next_one = todo.pop()
        if next_one.type == "type_binding" and text(next_one.child_by_field_name("name")) == "Item":
            return next_one.child_by_field_name("type")
        todo.extend(next_one.named_children)
    return None
