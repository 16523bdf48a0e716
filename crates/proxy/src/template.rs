//! Error pages of an app: HTML with `{{ .Message }}` and `{{ if .Message }} … {{ else }} … {{ end }}`, the part of Go's
//! templates that kamal-proxy's pages use.

/// Why a page cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{{` without its `}}`.
    #[error("line {line}: {{{{ is not closed by }}}}")]
    Open {
        /// Where, from 1.
        line: usize,
    },
    /// Something other than the message.
    #[error(
        "line {line}: {{{{ {action} }}}} is not understood; there is .Message, if .Message, else and end"
    )]
    Unknown {
        /// Where, from 1.
        line: usize,
        /// What stands there.
        action: String,
    },
    /// `else` or `end` without `if`, or `if` without `end`.
    #[error("line {line}: if, else and end do not fit together")]
    Nesting {
        /// Where, from 1.
        line: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Message,
    If(Vec<Part>, Vec<Part>),
}

/// A page that can be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

impl Template {
    /// Reads a page.
    ///
    /// # Errors
    /// Where it is not understood.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        // Parts read so far, and where in an `if` each level is: not at all, before or after `else`.
        let mut open: Vec<(Vec<Part>, Vec<Part>, bool)> = vec![(Vec::new(), Vec::new(), false)];
        let mut rest = text;
        let push = |open: &mut Vec<(Vec<Part>, Vec<Part>, bool)>, part: Part| {
            if let Some((yes, no, after)) = open.last_mut() {
                if *after { no.push(part) } else { yes.push(part) }
            }
        };
        loop {
            let line = || text[..text.len() - rest.len()].matches('\n').count() + 1;
            let Some(at) = rest.find("{{") else {
                let unclosed = open.len() > 1;
                push(&mut open, Part::Text(rest.into()));
                return match open.pop() {
                    Some((parts, ..)) if !unclosed => Ok(Self(parts)),
                    _ => Err(TemplateError::Nesting { line: line() }),
                };
            };
            push(&mut open, Part::Text(rest[..at].into()));
            rest = &rest[at..];
            let line = text[..text.len() - rest.len()].matches('\n').count() + 1;
            let Some(end) = rest.find("}}") else {
                return Err(TemplateError::Open { line });
            };
            let action = rest[2..end].trim_matches('-').trim();
            rest = &rest[end + 2..];
            let words: Vec<&str> = action.split_whitespace().collect();
            match &words[..] {
                [".Message"] => push(&mut open, Part::Message),
                ["if", ".Message"] => open.push((Vec::new(), Vec::new(), false)),
                ["else"] => match open.last_mut() {
                    Some((.., after)) if !*after => *after = true,
                    _ => return Err(TemplateError::Nesting { line }),
                },
                ["end"] if open.len() > 1 => {
                    if let Some((yes, no, _)) = open.pop() {
                        push(&mut open, Part::If(yes, no));
                    }
                }
                ["end"] => return Err(TemplateError::Nesting { line }),
                _ => {
                    return Err(TemplateError::Unknown {
                        line,
                        action: action.chars().take(60).collect(),
                    });
                }
            }
        }
    }

    /// The page with `message`, which is text, not HTML.
    pub(crate) fn fill(&self, message: &str) -> String {
        fn fill(parts: &[Part], message: &str, out: &mut String) {
            for part in parts {
                match part {
                    Part::Text(text) => out.push_str(text),
                    Part::Message => out.push_str(&crate::pages::escape(message)),
                    Part::If(yes, no) => fill(if message.is_empty() { no } else { yes }, message, out),
                }
            }
        }
        let mut out = String::new();
        fill(&self.0, message, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_filled_in_as_text() {
        let page = "<p>{{ if .Message }}{{ .Message }}{{- else }}soon{{ end }}</p>";
        let template = Template::parse(page).unwrap();
        assert_eq!(
            template.fill("back <b>at</b> 5"),
            "<p>back &lt;b&gt;at&lt;/b&gt; 5</p>"
        );
        assert_eq!(template.fill(""), "<p>soon</p>");
        assert_eq!(Template::parse("plain").unwrap().fill("x"), "plain");
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (page, line) in [
            ("a\n{{ .Message", "line 2: {{"),
            ("{{ range .X }}", "line 1: {{ range .X }}"),
            ("{{ end }}", "line 1: if"),
            ("\n\n{{ else }}{{ else }}", "line 3: if"),
            ("{{ if .Message }}x", "line 1: if"),
        ] {
            let error = Template::parse(page).unwrap_err().to_string();
            assert!(error.starts_with(line), "{page:?}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_page_makes_the_reader_panic(page in "[{}a. if els end Message\\n-]{0,80}") {
            if let Ok(template) = Template::parse(&page) {
                let _filled = template.fill("m");
            }
        }
    }
}
