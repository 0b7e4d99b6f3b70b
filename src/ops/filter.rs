//! Filters of lists: conditions that are ANDed, whose values are ORed, with EC2's wildcards: `*` and `?`, and
//! `\` to take them literally.

/// One condition: what is described has one of the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// EC2's name of the filter.
    pub name: String,
    /// Patterns, one of which must fit.
    pub values: Vec<String>,
}

impl Filter {
    /// Reads `NAME=VALUE[,VALUE]…`. A comma or backslash in a value is written with a backslash before it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or("write NAME=VALUE[,VALUE]")?;
        if name.is_empty() {
            return Err("write NAME=VALUE[,VALUE]".into());
        }
        let (mut parsed, mut value, mut chars) = (Vec::new(), String::new(), values.chars());
        while let Some(c) = chars.next() {
            match c {
                ',' => parsed.push(std::mem::take(&mut value)),
                '\\' => match chars.next() {
                    Some(',') => value.push(','),
                    // Wildcards keep their backslash: the matcher reads it.
                    Some(escaped) => value.extend(['\\', escaped]),
                    None => return Err("a backslash ends the value; write two for one".into()),
                },
                c => value.push(c),
            }
        }
        parsed.push(value);
        Ok(Self { name: name.to_owned(), values: parsed })
    }

    /// Whether one of the values that were found fits one of its patterns.
    pub(super) fn admits(&self, found: &[String]) -> bool {
        self.values.iter().any(|pattern| found.iter().any(|text| fits(pattern, text)))
    }
}

/// Whether a pattern with `*`, `?` and `\` fits a whole text. Time grows with the product of their lengths.
pub fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<Token> = tokens(pattern);
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut position) = (0, 0);
    // Where to go on if the last star must take one character more.
    let mut retry: Option<(usize, usize)> = None;
    while position < text.len() {
        match pattern.get(at) {
            Some(Token::Star) => {
                retry = Some((at, position));
                at += 1;
            }
            Some(token) if token.takes(text[position]) => {
                at += 1;
                position += 1;
            }
            _ => match &mut retry {
                Some((star, taken)) => {
                    *taken += 1;
                    (at, position) = (*star + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|token| *token == Token::Star)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Star,
    Any,
    Char(char),
}

impl Token {
    fn takes(self, c: char) -> bool {
        match self {
            Self::Star => false,
            Self::Any => true,
            Self::Char(own) => own == c,
        }
    }
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut chars = pattern.chars();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Char(chars.next().unwrap_or('\\')),
            c => Token::Char(c),
        });
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_ec2() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "anything"),
            ("web-*", "web-1"),
            ("*-1", "web-1"),
            ("w?b-1", "web-1"),
            ("*e*b*", "aexxbz"),
            (r"a\*b", "a*b"),
            (r"\?", "?"),
            (r"a\\b", r"a\b"),
            ("a**b", "ab"),
            ("ü?", "üx"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("web", "web-1"),
            ("?", ""),
            (r"a\*b", "axb"),
            ("WEB*", "web"),
            ("*a", "ab"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_time() {
        let (pattern, text) = ("*a".repeat(500) + "b", "a".repeat(2000));
        assert!(!fits(&pattern, &text));
    }

    #[test]
    fn filters_are_read_with_their_values() {
        let values = |text: &str| Filter::parse(text).map(|filter| filter.values);
        assert_eq!(values("name=a,b*"), Ok(vec!["a".into(), "b*".into()]));
        assert_eq!(values(r"name=a\,b"), Ok(vec!["a,b".into()]));
        assert_eq!(values(r"name=a\*"), Ok(vec![r"a\*".into()]));
        assert_eq!(values("tag:k=v=w"), Ok(vec!["v=w".into()]));
        assert_eq!(values("name="), Ok(vec![String::new()]));
        for bad in ["name", "=x", r"name=\"] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }
}
