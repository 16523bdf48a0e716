//! Strings in all their forms: quotes, `%w[…]`, here-documents, escapes, interpolation.

use super::{Lexer, MAX_NESTING, OUT_CLOSE, OUT_OPEN, RawPiece, TEXT, Tok, Token, Trouble};

impl Lexer<'_> {
    /// `?x`, the string of one character.
    pub(super) fn character(&mut self, space: bool) -> bool {
        let mut rest = self.rest()[1..].chars();
        let (Some(character), following) = (rest.next(), rest.next()) else {
            return false;
        };
        if character.is_whitespace()
            || character == '\\'
            || following.is_some_and(|c| c.is_alphanumeric() || c == '_')
        {
            return false;
        }
        let at = self.pos;
        self.pos += 1 + character.len_utf8();
        self.push(Tok::Str(vec![RawPiece::Text(character.to_string())]), at, space);
        true
    }

    pub(super) fn regex(
        &mut self,
        open: Option<char>,
        close: char,
        at: usize,
        space: bool,
    ) -> Result<(), Trouble> {
        let pieces = self.string_body(open, close, true, true)?;
        let length = self
            .rest()
            .find(|c: char| !c.is_ascii_lowercase())
            .unwrap_or(self.rest().len());
        let flags = self.rest()[..length].to_owned();
        self.pos += length;
        self.push(Tok::Regex(pieces, flags), at, space);
        Ok(())
    }

    /// `%w[…]` and its relatives; `false` when this `%` is an operator.
    pub(super) fn percent(&mut self, space: bool) -> Result<bool, Trouble> {
        let at = self.pos;
        let mut rest = self.rest()[1..].chars();
        let (kind, open) = match rest.next() {
            Some(kind) if kind.is_ascii_alphabetic() => match rest.next() {
                Some(open) if !open.is_alphanumeric() && !open.is_whitespace() => (kind, open),
                _ => return Ok(false),
            },
            Some(open @ ('(' | '[' | '{' | '<' | '|' | '!' | '/' | '^')) => ('Q', open),
            _ => return Ok(false),
        };
        if !"wWiIqQxrs".contains(kind) {
            return Ok(false);
        }
        self.pos += 1 + usize::from(!self.rest()[1..].starts_with(open)) + open.len_utf8();
        let (nested, close) = match open {
            '(' => (Some('('), ')'),
            '[' => (Some('['), ']'),
            '{' => (Some('{'), '}'),
            '<' => (Some('<'), '>'),
            other => (None, other),
        };
        let tok = match kind {
            'w' | 'i' => {
                let pieces = self.string_body(nested, close, false, false)?;
                let text = plain_text(&pieces);
                let words = text.split_ascii_whitespace().map(str::to_owned);
                if kind == 'w' {
                    Tok::Words(words.map(|word| vec![RawPiece::Text(word)]).collect())
                } else {
                    Tok::Symbols(words.collect())
                }
            }
            'W' => Tok::Words(split_words(self.string_body(nested, close, true, false)?)),
            'I' => return Err(Trouble::unsupported(self.here(at), "%I[…]")),
            'q' => Tok::Str(self.string_body(nested, close, false, false)?),
            's' => Tok::Symbol(self.string_body(nested, close, false, false)?),
            'x' => Tok::Command(self.string_body(nested, close, true, false)?),
            'r' => {
                self.regex(nested, close, at, space)?;
                return Ok(true);
            }
            _ => Tok::Str(self.string_body(nested, close, true, false)?),
        };
        self.push(tok, at, space);
        Ok(true)
    }

    /// `<<~NAME`, `<<-NAME` and `<<NAME`; `false` when this `<<` is an operator.
    pub(super) fn heredoc(&mut self, space: bool) -> Result<bool, Trouble> {
        let at = self.pos;
        let after = &self.rest()[2..];
        let style = after.chars().next().filter(|c| matches!(c, '~' | '-'));
        let name_at = &after[style.map_or(0, char::len_utf8)..];
        let quote = name_at.chars().next().filter(|c| matches!(c, '"' | '\'' | '`'));
        let name_start = &name_at[quote.map_or(0, char::len_utf8)..];
        let length = name_start
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(name_start.len());
        let name = &name_start[..length];
        let bare_ok = name.chars().next().is_some_and(|c| c.is_uppercase() || c == '_');
        if name.is_empty() || (quote.is_none() && !bare_ok) || (style.is_none() && !self.wants_value(space)) {
            return Ok(false);
        }
        if quote.is_some_and(|quote| !name_start[length..].starts_with(quote)) {
            return Ok(false);
        }
        let head = 2 + style.map_or(0, char::len_utf8) + 2 * quote.map_or(0, char::len_utf8) + length;
        self.pos += head;
        let body_start = match self.heredoc_end {
            Some(end) => end,
            None => self
                .rest()
                .find('\n')
                .map_or(self.code.len(), |end| self.pos + end + 1),
        };
        let mut body = String::new();
        let mut end = body_start;
        let mut closed = false;
        for line in self.code[body_start..].split_inclusive('\n') {
            end += line.len();
            let bare = line.trim_end_matches(['\n', '\r']);
            let found = if style.is_some() { bare.trim_start() } else { bare };
            if found == name {
                closed = true;
                break;
            }
            body.push_str(line);
        }
        if !closed {
            return Err(Trouble::syntax(
                self.here(at),
                format!("can't find string \"{name}\" anywhere before EOF"),
            ));
        }
        self.heredoc_end = Some(end);
        if style == Some('~') {
            body = dedent(&body);
        }
        let pieces = if quote == Some('\'') {
            vec![RawPiece::Text(body)]
        } else {
            let mut inner = Lexer::new(&body, self.nesting + 1);
            inner.fixed_at = Some(self.here(at));
            inner.pieces(None, None, true, false)?
        };
        let tok = if quote == Some('`') {
            Tok::Command(pieces)
        } else {
            Tok::Str(pieces)
        };
        self.push(tok, at, space);
        Ok(true)
    }

    pub(super) fn string_body(
        &mut self,
        open: Option<char>,
        close: char,
        interpolate: bool,
        regex: bool,
    ) -> Result<Vec<RawPiece>, Trouble> {
        self.pieces(open, Some(close), interpolate, regex)
    }

    /// The pieces of a string up to `close` (or the end), which is consumed.
    pub(super) fn pieces(
        &mut self,
        open: Option<char>,
        close: Option<char>,
        interpolate: bool,
        regex: bool,
    ) -> Result<Vec<RawPiece>, Trouble> {
        let start = self.pos;
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut depth = 0usize;
        loop {
            let Some(next) = self.bump() else {
                if close.is_some() {
                    return Err(Trouble::syntax(
                        self.here(start),
                        "unterminated string meets end of file",
                    ));
                }
                break;
            };
            match next {
                _ if Some(next) == close && depth == 0 => break,
                _ if Some(next) == close => {
                    depth -= 1;
                    text.push(next);
                }
                _ if Some(next) == open => {
                    depth += 1;
                    text.push(next);
                }
                TEXT | OUT_OPEN | OUT_CLOSE => {
                    return Err(Trouble::syntax(
                        self.here(start),
                        "unterminated string meets the end of its tag",
                    ));
                }
                '\\' if regex => {
                    let escaped = self.bump().unwrap_or('\\');
                    if Some(escaped) != close || escaped.is_ascii_punctuation() && escaped != '/' {
                        text.push('\\');
                    }
                    text.push(escaped);
                }
                '\\' if interpolate => self.escape(&mut text)?,
                '\\' => match self.peek() {
                    Some(c) if c == '\\' || Some(c) == close || Some(c) == open => text.extend(self.bump()),
                    _ => text.push('\\'),
                },
                '#' if interpolate && self.peek() == Some('{') => {
                    self.pos += 1;
                    if !text.is_empty() {
                        pieces.push(RawPiece::Text(std::mem::take(&mut text)));
                    }
                    pieces.push(RawPiece::Code(self.interpolation()?));
                }
                _ => text.push(next),
            }
        }
        if !text.is_empty() || pieces.is_empty() {
            pieces.push(RawPiece::Text(text));
        }
        Ok(pieces)
    }

    pub(super) fn interpolation(&mut self) -> Result<Vec<Token>, Trouble> {
        if self.nesting >= MAX_NESTING {
            return Err(Trouble::unsupported(
                self.here(self.pos),
                "strings nested this deep",
            ));
        }
        let mut inner = Lexer::new(self.code, self.nesting + 1);
        inner.pos = self.pos;
        inner.fixed_at = self.fixed_at;
        inner.locals.clone_from(&self.locals);
        inner.run(true)?;
        let end = inner.pos - 1;
        inner.push(Tok::Newline, end, false);
        inner.push(Tok::End, end, false);
        self.pos = inner.pos;
        Ok(inner.out)
    }

    pub(super) fn escape(&mut self, text: &mut String) -> Result<(), Trouble> {
        let at = self.pos;
        let Some(escaped) = self.bump() else {
            return Err(Trouble::syntax(
                self.here(at),
                "unterminated string meets end of file",
            ));
        };
        match escaped {
            'n' => text.push('\n'),
            't' => text.push('\t'),
            's' => text.push(' '),
            'r' => text.push('\r'),
            'a' => text.push('\u{7}'),
            'b' => text.push('\u{8}'),
            'e' => text.push('\u{1b}'),
            'f' => text.push('\u{c}'),
            'v' => text.push('\u{b}'),
            '\n' => {}
            'x' => self.code_point(at, 16, 2, 0x7f, text)?,
            '0'..='7' => {
                self.pos = at;
                self.code_point(at, 8, 3, 0x7f, text)?;
            }
            'u' if self.peek() == Some('{') => {
                let end = self
                    .rest()
                    .find('}')
                    .ok_or_else(|| Trouble::syntax(at, "unterminated Unicode escape"))?;
                let list = self.rest()[1..end].to_owned();
                self.pos += end + 1;
                for hex in list.split_ascii_whitespace() {
                    let found = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
                    text.push(
                        found.ok_or_else(|| Trouble::syntax(self.here(at), "invalid Unicode codepoint"))?,
                    );
                }
            }
            'u' => self.code_point(at, 16, 4, u32::MAX, text)?,
            'c' | 'C' | 'M' => return Err(Trouble::unsupported(self.here(at), "control escapes in strings")),
            other => text.push(other),
        }
        Ok(())
    }

    pub(super) fn code_point(
        &mut self,
        at: usize,
        radix: u32,
        longest: usize,
        limit: u32,
        text: &mut String,
    ) -> Result<(), Trouble> {
        let length = self
            .rest()
            .chars()
            .take(longest)
            .take_while(|c| c.is_digit(radix))
            .count();
        let digits = &self.rest()[..length];
        let code = u32::from_str_radix(digits, radix)
            .map_err(|_| Trouble::syntax(self.here(at), "invalid escape in a string"))?;
        self.pos += length;
        if code > limit {
            return Err(Trouble::unsupported(self.here(at), "raw bytes in strings"));
        }
        text.push(
            char::from_u32(code)
                .ok_or_else(|| Trouble::syntax(self.here(at), "invalid Unicode codepoint"))?,
        );
        Ok(())
    }
}

fn plain_text(pieces: &[RawPiece]) -> String {
    pieces
        .iter()
        .map(|piece| match piece {
            RawPiece::Text(text) => text.as_str(),
            RawPiece::Code(_) => "",
        })
        .collect()
}

/// Splits at blanks of the text, never inside an interpolation.
fn split_words(pieces: Vec<RawPiece>) -> Vec<Vec<RawPiece>> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    for piece in pieces {
        match piece {
            RawPiece::Code(_) => word.push(piece),
            RawPiece::Text(text) => {
                for (index, part) in text.split(|c: char| c.is_ascii_whitespace()).enumerate() {
                    if index > 0 && !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                    if !part.is_empty() {
                        word.push(RawPiece::Text(part.to_owned()));
                    }
                }
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes the smallest indentation off every line; blank lines do not count.
fn dedent(body: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let smallest = body
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(indent)
        .min()
        .unwrap_or(0);
    body.split_inclusive('\n')
        .map(|line| &line[smallest.min(indent(line))..])
        .collect()
}
