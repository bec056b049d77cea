//! Subjects with wildcards, as NATS understands them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A set of subjects: `*` stands for any one token, `>` at the end for one token or more.
///
/// ```
/// use coordinator::Pattern;
/// let telemetry: Pattern = "lucent.hierarchy.*.*.agent.>".parse().unwrap();
/// assert!(telemetry.matches("lucent.hierarchy.node.n1.agent.telemetry"));
/// assert!(!telemetry.matches("lucent.hierarchy.node.n1.agent"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Token {
    Literal(Box<str>),
    /// `*`
    One,
    /// `>`, and so the last.
    Rest,
}

/// A text that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("subject pattern `{pattern}` is refused: {reason}")]
pub struct BadPattern {
    /// The text, cut where it is very long.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Longest pattern in bytes; subjects of the mesh are much shorter.
const MAX_BYTES: usize = 255;

impl Pattern {
    /// Whether `subject` is in the set.
    pub fn matches(&self, subject: &str) -> bool {
        let mut words = subject.split('.');
        for token in &self.0 {
            match (token, words.next()) {
                (Token::Rest, Some(_)) => return true,
                (Token::One, Some(_)) => {}
                (Token::Literal(literal), Some(word)) if **literal == *word => {}
                _ => return false,
            }
        }
        words.next().is_none()
    }
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| BadPattern { pattern: s.chars().take(80).collect(), reason };
        if s.len() > MAX_BYTES {
            return Err(refuse("it has more than 255 bytes"));
        }
        let mut words = s.split('.').peekable();
        let mut tokens = Vec::new();
        while let Some(word) = words.next() {
            tokens.push(match word {
                "" => return Err(refuse("a token between the dots is empty")),
                "*" => Token::One,
                ">" if words.peek().is_some() => return Err(refuse("`>` must be the last token")),
                ">" => Token::Rest,
                // NATS would take such a token by the letter, which nobody means who writes it.
                _ if word.contains(['*', '>']) => {
                    return Err(refuse("`*` and `>` must each be a whole token"));
                }
                _ if word.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                    return Err(refuse("a subject has no white space"));
                }
                _ => Token::Literal(word.into()),
            });
        }
        Ok(Pattern(tokens))
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadPattern;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, token) in self.0.iter().enumerate() {
            let dot = if i > 0 { "." } else { "" };
            let word = match token {
                Token::Literal(literal) => literal,
                Token::One => "*",
                Token::Rest => ">",
            };
            write!(f, "{dot}{word}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    /// All patterns that match a subject, written out: each token as itself or `*`, and each non-empty
    /// end as `>`.
    fn every_pattern_of(subject: &[&str]) -> Vec<String> {
        let Some((first, rest)) = subject.split_first() else { return vec![String::new()] };
        let mut patterns = vec![">".to_owned()];
        for tail in every_pattern_of(rest) {
            for head in [first, "*"] {
                let dot = if rest.is_empty() { "" } else { "." };
                patterns.push(format!("{head}{dot}{tail}"));
            }
        }
        patterns
    }

    fn subject() -> impl Strategy<Value = Vec<&'static str>> {
        vec(select(&["a", "b", "ab"][..]), 1..6)
    }

    fn pattern() -> impl Strategy<Value = String> {
        let words = vec(select(&["a", "b", "ab", "*", "*"][..]), 1..5);
        (words, any::<bool>()).prop_map(|(mut words, open)| {
            if open {
                words.push(">");
            }
            words.join(".")
        })
    }

    proptest! {
        #[test]
        fn a_pattern_matches_exactly_the_subjects_that_it_can_be_written_for(
            subject in subject(), pattern in pattern(),
        ) {
            let parsed: Pattern = pattern.parse().unwrap();
            let expected = every_pattern_of(&subject).contains(&pattern);
            prop_assert_eq!(parsed.matches(&subject.join(".")), expected);
            prop_assert_eq!(parsed.to_string(), pattern);
        }

        #[test]
        fn every_pattern_of_a_subject_matches_it(subject in subject()) {
            for pattern in every_pattern_of(&subject) {
                prop_assert!(pattern.parse::<Pattern>().unwrap().matches(&subject.join(".")), "{}", pattern);
            }
        }
    }

    #[test]
    fn a_bad_pattern_is_named_with_what_is_wrong_with_it() {
        for bad in ["", ".a", "a.", "a..b", "a.>.b", ">.a", "a*", "a.b>", "a b", "a.\tb", "a.**"] {
            let error = bad.parse::<Pattern>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{bad}`")), "{error}");
        }
        assert_eq!("x".repeat(256).parse::<Pattern>().unwrap_err().pattern.len(), 80);
        assert!(serde_json::from_str::<Pattern>(r#""a.>.b""#).is_err());
    }
}
