//! Just enough of Rust's surface: a text with comments and literals blanked out, and what can be read from that.

/// The same text with the insides of comments, strings and character literals replaced by spaces; lines stay in place.
pub fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let end = match c {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => block_comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !after_word(&chars, at) => raw_string_end(&chars, at).unwrap_or(at),
            'b' | 'c' if !after_word(&chars, at) && chars.get(at + 1) == Some(&'r') => {
                raw_string_end(&chars, at + 1).unwrap_or(at)
            }
            '\'' => char_end(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(c);
            at += 1;
        } else {
            out.extend(chars.get(at..end).unwrap_or_default().iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn after_word(chars: &[char], at: usize) -> bool {
    at.checked_sub(1).and_then(|i| chars.get(i)).is_some_and(|c| c.is_alphanumeric() || *c == '_')
}

fn line_end(chars: &[char], from: usize) -> usize {
    (from..chars.len()).find(|i| chars.get(*i) == Some(&'\n')).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], from: usize) -> usize {
    let (mut depth, mut at) = (0u32, from);
    while at < chars.len() {
        match (chars.get(at), chars.get(at + 1)) {
            (Some('/'), Some('*')) => (depth, at) = (depth + 1, at + 2),
            (Some('*'), Some('/')) => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while let Some(c) = chars.get(at) {
        match c {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `r"…"` and `r#"…"#`; None for an identifier that begins with r, or a raw identifier.
fn raw_string_end(chars: &[char], from: usize) -> Option<usize> {
    let hashes = chars.get(from + 1..)?.iter().take_while(|c| **c == '#').count();
    let open = from + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    (open + 1..chars.len())
        .find(|i| {
            chars.get(*i) == Some(&'"') && chars.get(i + 1..i + 1 + hashes).is_some_and(|h| h.iter().all(|c| *c == '#'))
        })
        .map(|i| i + 1 + hashes)
        .or(Some(chars.len()))
}

/// The end of a character literal, or `from` for a lifetime.
fn char_end(chars: &[char], from: usize) -> usize {
    if chars.get(from + 1) == Some(&'\\') {
        let close = (from + 3..chars.len()).find(|i| chars.get(*i) == Some(&'\''));
        return close.map_or(chars.len(), |i| i + 1);
    }
    if chars.get(from + 2) == Some(&'\'') { from + 3 } else { from }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// The line of `fn`, from 1.
    pub line: usize,
    pub lines: usize,
    /// An attribute that ends in `test` stands above it.
    pub test: bool,
}

/// Every function with a body, nested ones too, of a masked text.
pub fn functions(masked: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in masked.match_indices("fn ") {
        if masked
            .get(..at)
            .and_then(|s| s.chars().next_back())
            .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '#')
        {
            continue;
        }
        let rest = masked.get(at + 3..).unwrap_or_default();
        let name: String = rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(length) = body_end(rest) else { continue };
        if name.is_empty() {
            continue;
        }
        let newlines = |s: &str| s.matches('\n').count();
        found.push(Function {
            name,
            line: 1 + newlines(masked.get(..at).unwrap_or_default()),
            lines: 1 + newlines(rest.get(..length).unwrap_or_default()),
            test: is_test(masked.get(..at).unwrap_or_default()),
        });
    }
    found
}

/// Byte offset behind the `}` that closes the first body; None when a `;` comes first (a declaration).
fn body_end(rest: &str) -> Option<usize> {
    let (mut round, mut curly) = (0i32, 0i32);
    for (at, c) in rest.char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round -= 1,
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' => {
                curly -= 1;
                if curly <= 0 {
                    return (curly == 0).then_some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn is_test(before: &str) -> bool {
    // Only what stands between the previous item and this function.
    let near = before.rfind(['}', ';', '{']).map_or(before, |i| before.get(i + 1..).unwrap_or_default());
    near.match_indices("#[").any(|(i, _)| {
        let attribute: String =
            near.get(i + 2..).unwrap_or_default().chars().take_while(|c| *c != ']' && *c != '(').collect();
        attribute.trim().rsplit("::").next() == Some("test")
    })
}

/// The masked text with `#[cfg(test)] mod … { … }` blanked: what is compiled into the product.
pub fn without_test_modules(masked: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = masked.to_owned();
    let mut from = 0;
    while let Some(at) = out.get(from..).and_then(|s| s.find(MARK)).map(|i| from + i) {
        let rest = out.get(at + MARK.len()..).unwrap_or_default();
        let module = rest.trim_start().starts_with("mod ") || rest.trim_start().starts_with("pub mod ");
        let end = if module { body_end(rest).map(|n| at + MARK.len() + n) } else { None };
        if let Some(end) = end {
            let blank: String =
                out.get(at..end).unwrap_or_default().chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            out.replace_range(at..end, &blank);
        }
        from = at + MARK.len();
        while !out.is_char_boundary(from) {
            from += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_blanked() {
        let source = "let a = \"fn x() {\"; // fn y() {\n/* { /* { */ */ let b = r#\"}\"}\"#; let c = '{'; let d: &'static str = b\"{\"; '\\''";
        let masked = mask(source);
        assert!(!masked.contains('{') && !masked.contains('}'), "{masked}");
        assert!(masked.contains("&'static str") && masked.contains("let b ="), "{masked}");
        assert_eq!(masked.matches('\n').count(), 1);
    }

    #[test]
    fn functions_are_measured() {
        let source = "trait T { fn declared(&self) -> [u8; 2]; }\nfn short() {}\n#[tokio::test]\nasync fn long(a: u8,\n  b: u8) -> u8 {\n  fn inner() {\n  }\n  a\n}\nlet f: fn(u8) = x;";
        let found = functions(&mask(source));
        let seen: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.line, f.lines, f.test)).collect();
        assert_eq!(seen, [("short", 2, 1, false), ("long", 4, 6, true), ("inner", 6, 2, false)]);
    }

    #[test]
    fn a_test_attribute_with_arguments_counts() {
        let source = "#[tokio::test(flavor = \"current_thread\")]\n#[ignore]\nfn a() {}\n#[test_only]\nfn b() {}";
        assert_eq!(functions(&mask(source)).iter().map(|f| f.test).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn test_modules_do_not_count() {
        let out = without_test_modules("use crate::a;\n#[cfg(test)]\nmod tests {\n use crate::b;\n}\nuse crate::c;");
        assert!(out.contains("crate::a") && out.contains("crate::c") && !out.contains("crate::b"), "{out}");
    }
}
