//! TOML edited in place: comments, order and indentation stay.

use toml_edit::{InlineTable, Item, Table, TableLike, Value};

/// The table at `path` below `root`, made where it is missing. The error names the key that is something else.
pub(super) fn table<'a>(root: &'a mut Table, path: &[&str]) -> Result<&'a mut dyn TableLike, String> {
    let mut current: &mut dyn TableLike = root;
    let mut inline = false;
    for (depth, key) in path.iter().enumerate() {
        let last = depth + 1 == path.len();
        let item = current.entry(key).or_insert_with(|| {
            if inline {
                return Item::Value(Value::InlineTable(InlineTable::new()));
            }
            let mut table = Table::new();
            // Tables that only lead to others need no header.
            table.set_implicit(!last);
            Item::Table(table)
        });
        inline = matches!(item, Item::Value(Value::InlineTable(_)));
        current = item.as_table_like_mut().ok_or_else(|| format!("{} is not a table", path[..=depth].join(".")))?;
    }
    Ok(current)
}

/// The table at `path`, if it is there.
pub(super) fn find<'a>(root: &'a Table, path: &[&str]) -> Option<&'a dyn TableLike> {
    let root: &dyn TableLike = root;
    path.iter().try_fold(root, |table, key| table.get(key)?.as_table_like())
}

/// Sets a key unless it has that value already. A comment behind the old value stays.
pub(super) fn set(table: &mut dyn TableLike, key: &str, value: impl Into<Value>, indent: &str) {
    let mut value = value.into();
    if let Some(old) = table.get_mut(key).and_then(Item::as_value_mut) {
        if same(old, &value) {
            return;
        }
        *value.decor_mut() = old.decor().clone();
        *old = value;
        return;
    }
    let indent = own_indent(table).unwrap_or_else(|| indent.to_owned());
    table.insert(key, Item::Value(value));
    if let Some(mut key) = table.key_mut(key) {
        key.leaf_decor_mut().set_prefix(indent);
    }
}

/// How the keys of this table are indented, if it has any.
fn own_indent(table: &dyn TableLike) -> Option<String> {
    let (name, _) = table.iter().find(|(_, item)| item.is_value())?;
    let prefix = table.key(name)?.leaf_decor().prefix()?.as_str()?;
    let indent = prefix.rsplit('\n').next().unwrap_or_default();
    indent.chars().all(|c| c == ' ' || c == '\t').then(|| indent.to_owned())
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.value() == b.value(),
        (Value::Boolean(a), Value::Boolean(b)) => a.value() == b.value(),
        (Value::Integer(a), Value::Integer(b)) => a.value() == b.value(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same(a, b)),
        _ => false,
    }
}

/// The number of the line where an error is, and what it is.
pub(super) fn malformed(text: &str, error: &toml_edit::TomlError) -> String {
    let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    format!("line {line}: {}", error.message().trim_end())
}
