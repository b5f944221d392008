//! Schemas: what may be typed, as plain structs whose every field may be absent (`Raw*`), read from a [`Node`] with every
//! violation reported: wrong types, unknown fields with the nearest known one.

use crate::{
    node::{Node, Value},
    violation::{Reason, Sink, Spot, nearest},
};

/// A value and where it stood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct At<T> {
    pub spot: Spot,
    pub value: T,
}

/// A field as typed: absent, or a value of the right type.
pub(crate) type Field<T> = Option<At<T>>;

/// Reads a value of one type, reporting whatever is not right; `None` when nothing can be made of it.
pub(crate) trait Decode: Sized {
    fn decode(node: &Node, spot: &Spot, out: &mut Sink) -> Option<Self>;
}

/// A number or a text, such as a Service's `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IntOrText {
    Int(i64),
    Text(String),
}

/// Known and accepted, without a meaning here (a Service's `clusterIP`).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ignored;

/// Declares a struct of what may be typed. Each line: the field, its type, its name in the document.
macro_rules! schema {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident : $type:ty = $key:literal),* $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(crate) struct $name {
            $(pub $field: $crate::schema::Field<$type>,)*
        }

        impl $crate::schema::Decode for $name {
            fn decode(
                node: &$crate::node::Node,
                spot: &$crate::violation::Spot,
                out: &mut $crate::violation::Sink,
            ) -> Option<Self> {
                const KNOWN: &[&str] = &[$($key),*];
                $crate::schema::open(node, spot, KNOWN, out)?;
                Some(Self { $($field: $crate::schema::field(node, spot, $key, out),)* })
            }
        }
    )*};
}
pub(crate) use schema;

/// Checks that the node is a mapping of known fields.
pub(crate) fn open(node: &Node, spot: &Spot, known: &[&str], out: &mut Sink) -> Option<()> {
    let entries = match &node.value {
        Value::Map(entries) => entries,
        // a document without a spec
        Value::Null => return Some(()),
        _ => return wrong(node, spot, "a mapping", out),
    };
    for (key, _) in entries.iter().filter(|(k, _)| !known.contains(&k.text.as_str())) {
        let at = Spot::new(spot.field(&key.text), key.line, key.column);
        let message = match nearest(&key.text, known.iter().copied()) {
            Some(near) => format!("unknown field; did you mean `{near}`?"),
            None if known.is_empty() => "unknown field; none is known here".into(),
            None => format!("unknown field; known here: {}", known.join(", ")),
        };
        out.refuse(&at, Reason::UnknownField, message);
    }
    Some(())
}

/// Reads one field of a mapping. Null is as good as absent.
pub(crate) fn field<T: Decode>(node: &Node, spot: &Spot, key: &str, out: &mut Sink) -> Field<T> {
    let value = node.get(key).filter(|n| n.value != Value::Null)?;
    let spot = Spot::new(spot.field(key), value.line, value.column);
    T::decode(value, &spot, out).map(|value| At { spot, value })
}

fn wrong<T>(node: &Node, spot: &Spot, wanted: &str, out: &mut Sink) -> Option<T> {
    out.invalid(spot, format!("must be {wanted}, is {}", node.describe()));
    None
}

// === what a field may hold ===

impl Decode for String {
    fn decode(node: &Node, spot: &Spot, out: &mut Sink) -> Option<Self> {
        match &node.value {
            Value::Text(t) => Some(t.clone()),
            Value::Bool(_) | Value::Number(_) => {
                out.invalid(spot, format!("must be text, is {}; put it in quotes", node.describe()));
                None
            }
            _ => wrong(node, spot, "text", out),
        }
    }
}

impl Decode for bool {
    fn decode(node: &Node, spot: &Spot, out: &mut Sink) -> Option<Self> {
        match &node.value {
            Value::Bool(b) => Some(*b),
            _ => wrong(node, spot, "`true` or `false`", out),
        }
    }
}

impl Decode for i64 {
    fn decode(node: &Node, spot: &Spot, out: &mut Sink) -> Option<Self> {
        match &node.value {
            Value::Number(n) if n.is_i64() => n.as_i64(),
            _ => wrong(node, spot, "a whole number", out),
        }
    }
}

impl Decode for IntOrText {
    fn decode(node: &Node, spot: &Spot, out: &mut Sink) -> Option<Self> {
        match &node.value {
            Value::Number(n) if n.is_i64() => n.as_i64().map(Self::Int),
            Value::Text(t) => Some(Self::Text(t.clone())),
            _ => wrong(node, spot, "a whole number or text", out),
        }
    }
}

impl Decode for Ignored {
    fn decode(_: &Node, _: &Spot, _: &mut Sink) -> Option<Self> {
        Some(Self)
    }
}

impl<T: Decode> Decode for Vec<At<T>> {
    fn decode(node: &Node, spot: &Spot, out: &mut Sink) -> Option<Self> {
        let Value::List(items) = &node.value else {
            return wrong(node, spot, "a list", out);
        };
        let read = |(i, item): (usize, &Node)| {
            let spot = Spot::new(format!("{}[{i}]", spot.path), item.line, item.column);
            // a dash with nothing behind it must not become an empty rule, which matches everything
            if item.value == Value::Null {
                out.invalid(&spot, "is empty; write something after the dash, or remove it");
                return None;
            }
            T::decode(item, &spot, out).map(|value| At { spot, value })
        };
        Some(items.iter().enumerate().filter_map(read).collect())
    }
}

/// A mapping of free keys, in the order of the text. The spot of an entry is its value's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entries<T>(pub Vec<(String, At<T>)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Decode> Decode for Entries<T> {
    fn decode(node: &Node, spot: &Spot, out: &mut Sink) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            return wrong(node, spot, "a mapping", out);
        };
        let read = |(key, item): &(crate::node::Key, Node)| {
            let spot = Spot::new(format!("{}[{}]", spot.path, key.text), item.line, item.column);
            let value = T::decode(item, &spot, out)?;
            Some((key.text.clone(), At { spot, value }))
        };
        Some(Self(entries.iter().filter_map(read).collect()))
    }
}
