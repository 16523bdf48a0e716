//! Ruby's tokens.
//!
//! Ruby's lexer depends on what came before (`/` divides or begins a regular expression, `?` asks or quotes a character);
//! the same two questions decide here: does the previous token end a value, and where are the blanks.

use std::collections::HashSet;

use super::template::{OUT_CLOSE, OUT_OPEN, TEXT};

/// Why code was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Offset in the compiled program.
    pub(super) at: usize,
    pub(super) what: String,
    /// Valid Ruby (as far as we can tell) that is not evaluated natively.
    pub(super) unsupported: bool,
}

impl Trouble {
    pub(super) fn syntax(at: usize, what: impl Into<String>) -> Self {
        Self {
            at,
            what: what.into(),
            unsupported: false,
        }
    }

    pub(super) fn unsupported(at: usize, what: impl Into<String>) -> Self {
        Self {
            at,
            what: what.into(),
            unsupported: true,
        }
    }
}

/// Part of a string: text, or the tokens of an interpolation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RawPiece {
    Text(String),
    Code(Vec<Token>),
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tok {
    Int(i64),
    Float(f64),
    Str(Vec<RawPiece>),
    Command(Vec<RawPiece>),
    Regex(Vec<RawPiece>, String),
    Symbol(Vec<RawPiece>),
    /// `%w[…]` and `%W[…]`.
    Words(Vec<Vec<RawPiece>>),
    /// `%i[…]`.
    Symbols(Vec<String>),
    Ident(String),
    Const(String),
    Instance(String),
    Global(String),
    /// `name:` in a hash or an argument list.
    Label(String),
    /// `"text":` likewise.
    StrLabel(Vec<RawPiece>),
    Keyword(&'static str),
    Op(&'static str),
    Newline,
    Text(usize),
    OutOpen,
    OutClose,
    End,
}

/// A token, where it stands, and whether blanks surround it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) tok: Tok,
    pub(super) at: usize,
    pub(super) space_before: bool,
    pub(super) space_after: bool,
}

const KEYWORDS: &[&str] = &[
    "__FILE__", "__LINE__", "alias", "and", "begin", "break", "case", "class", "def", "defined?", "do",
    "else", "elsif", "end", "ensure", "false", "for", "if", "in", "module", "next", "nil", "not", "or",
    "redo", "rescue", "retry", "return", "self", "super", "then", "true", "undef", "unless", "until", "when",
    "while", "yield",
];

/// Longest first.
const OPERATORS: &[&str] = &[
    "**=", "<=>", "===", "...", "<<=", ">>=", "&&=", "||=", "&.", "**", "==", "!=", ">=", "<=", "&&", "||",
    "=~", "!~", "..", "::", "+=", "-=", "*=", "/=", "%=", "|=", "&=", "^=", "<<", ">>", "->", "=>", "+", "-",
    "*", "/", "%", "<", ">", "!", "=", "?", ":", ".", ",", "(", ")", "[", "]", "{", "}", "|", "&", "^", "~",
];

/// Interpolations inside interpolations end here.
const MAX_NESTING: usize = 16;

/// Cuts a program into tokens.
pub(super) fn tokens(code: &str) -> Result<Vec<Token>, Trouble> {
    let mut lexer = Lexer::new(code, 0);
    lexer.run(false)?;
    let at = lexer.pos;
    lexer.push(Tok::Newline, at, false);
    lexer.push(Tok::End, at, false);
    Ok(lexer.out)
}

struct Lexer<'s> {
    code: &'s str,
    pos: usize,
    out: Vec<Token>,
    /// Where the next line begins when here-documents follow this one.
    heredoc_end: Option<usize>,
    /// Open `? :`.
    ternaries: usize,
    /// Names that were assigned: `x /2` divides, `puts /2/` does not.
    locals: HashSet<String>,
    nesting: usize,
    /// Set inside a dedented here-document, whose offsets are not those of the program.
    fixed_at: Option<usize>,
}

impl<'s> Lexer<'s> {
    fn new(code: &'s str, nesting: usize) -> Self {
        Self {
            code,
            pos: 0,
            out: Vec::new(),
            heredoc_end: None,
            ternaries: 0,
            locals: HashSet::new(),
            nesting,
            fixed_at: None,
        }
    }

    fn rest(&self) -> &'s str {
        &self.code[self.pos..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn peek_at(&self, offset: usize) -> Option<u8> {
        self.code.as_bytes().get(self.pos + offset).copied()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.pos += next.len_utf8();
        Some(next)
    }

    fn here(&self, at: usize) -> usize {
        self.fixed_at.unwrap_or(at)
    }

    fn push(&mut self, tok: Tok, at: usize, space_before: bool) {
        let space_after = self.peek().is_none_or(char::is_whitespace);
        self.out.push(Token {
            tok,
            at: self.here(at),
            space_before,
            space_after,
        });
    }

    /// Lexes to the end, or to the `}` that closes an interpolation.
    fn run(&mut self, interpolation: bool) -> Result<(), Trouble> {
        let mut braces = 0usize;
        loop {
            let space = self.skip_blanks();
            let at = self.pos;
            let Some(next) = self.peek() else {
                return if interpolation {
                    Err(Trouble::syntax(self.here(at), "unterminated #{…} in a string"))
                } else {
                    Ok(())
                };
            };
            match next {
                '\n' => {
                    self.pos = self.heredoc_end.take().unwrap_or(self.pos + 1);
                    if !self.line_continues() {
                        self.push(Tok::Newline, at, space);
                    }
                }
                ';' => {
                    self.pos += 1;
                    self.push(Tok::Newline, at, space);
                }
                '{' => {
                    braces += 1;
                    self.operator(space)?;
                }
                '}' if interpolation && braces == 0 => {
                    self.pos += 1;
                    return Ok(());
                }
                '}' => {
                    braces = braces.saturating_sub(1);
                    self.operator(space)?;
                }
                TEXT => self.text_mark(at)?,
                OUT_OPEN => {
                    self.bump();
                    self.push(Tok::OutOpen, at, space);
                }
                OUT_CLOSE => {
                    self.bump();
                    self.push(Tok::OutClose, at, space);
                }
                '0'..='9' => self.number(space)?,
                '"' => self.quoted('"', true, space)?,
                '\'' => self.quoted('\'', false, space)?,
                '`' if !self.after_dot() => {
                    self.pos += 1;
                    let pieces = self.string_body(None, '`', true, false)?;
                    self.push(Tok::Command(pieces), at, space);
                }
                '@' => self.instance(space)?,
                '$' => self.global(space)?,
                ':' => self.colon(space)?,
                '?' if self.wants_value(space) && self.character(space) => {}
                '/' if self.wants_value(space) => {
                    self.pos += 1;
                    self.regex(None, '/', at, space)?;
                }
                '%' if self.wants_value(space) && self.percent(space)? => {}
                '<' if self.rest().starts_with("<<") && self.heredoc(space)? => {}
                _ if next.is_alphabetic() || next == '_' => self.word(space),
                _ => self.operator(space)?,
            }
        }
    }

    /// Skips blanks, comments and escaped newlines; tells whether there were any.
    fn skip_blanks(&mut self) -> bool {
        let start = self.pos;
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r' | '\u{b}' | '\u{c}') => self.pos += 1,
                Some('\\') if self.rest().starts_with("\\\n") => self.pos += 2,
                Some('\\') if self.rest().starts_with("\\\r\n") => self.pos += 3,
                Some('#') => self.pos += self.rest().find('\n').unwrap_or(self.rest().len()),
                Some('=') if self.rest().starts_with("=begin") && self.at_line_start() => {
                    self.pos += self
                        .rest()
                        .find("\n=end")
                        .map_or(self.rest().len(), |end| end + "\n=end".len());
                    self.pos += self.rest().find('\n').unwrap_or(self.rest().len());
                }
                _ => return self.pos > start,
            }
        }
    }

    fn at_line_start(&self) -> bool {
        self.pos == 0 || self.code.as_bytes()[self.pos - 1] == b'\n'
    }

    /// Whether the next line goes on with `.method`, `&.method` or follows comments that do.
    fn line_continues(&self) -> bool {
        let mut rest = self.rest();
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\r']);
            if let Some(comment) = rest.strip_prefix('#') {
                let Some(end) = comment.find('\n') else {
                    return false;
                };
                rest = &comment[end + 1..];
                continue;
            }
            return rest.starts_with("&.") || rest.starts_with('.') && !rest.starts_with("..");
        }
    }

    fn after_dot(&self) -> bool {
        matches!(self.out.last().map(|token| &token.tok), Some(Tok::Op("." | "&.")))
    }

    /// Whether a value may begin here.
    fn wants_value(&self, space: bool) -> bool {
        let Some(last) = self.out.last() else { return true };
        match &last.tok {
            Tok::Ident(name) => {
                // `puts /x/` against `total / 2` and `total /2`.
                let blank_follows = matches!(self.peek_at(1), None | Some(b' ' | b'\t' | b'\n' | b'='));
                space && !blank_follows && !self.locals.contains(name)
            }
            Tok::Int(_)
            | Tok::Float(_)
            | Tok::Str(_)
            | Tok::Command(_)
            | Tok::Regex(..)
            | Tok::Symbol(_)
            | Tok::Words(_)
            | Tok::Symbols(_)
            | Tok::Const(_)
            | Tok::Instance(_)
            | Tok::Global(_)
            | Tok::Op(")" | "]" | "}")
            | Tok::Keyword("end" | "self" | "true" | "false" | "nil" | "__FILE__" | "__LINE__") => false,
            _ => true,
        }
    }

    fn text_mark(&mut self, at: usize) -> Result<(), Trouble> {
        self.bump();
        let digits = self.rest().find(TEXT).unwrap_or(0);
        let index = self.rest()[..digits].parse();
        self.pos += digits;
        self.bump();
        let index = index.map_err(|_| Trouble::syntax(self.here(at), "stray mark"))?;
        self.push(Tok::Text(index), at, true);
        Ok(())
    }

    fn number(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        let rest = self.rest();
        let lower = rest.get(..2).map(str::to_ascii_lowercase);
        let (radix, skip) = match lower.as_deref() {
            Some("0x") => (16, 2),
            Some("0b") => (2, 2),
            Some("0o") => (8, 2),
            Some("0d") => (10, 2),
            Some(two) if two.starts_with('0') && matches!(two.as_bytes()[1], b'0'..=b'9' | b'_') => (8, 1),
            _ => (10, 0),
        };
        let length = rest[skip..]
            .find(|c: char| !(c.is_digit(radix) || c == '_'))
            .unwrap_or(rest.len() - skip);
        let digits: String = rest[skip..skip + length].chars().filter(|c| *c != '_').collect();
        self.pos += skip + length;
        if radix == 10 && skip == 0 {
            let fraction = self.rest();
            let mut float = digits.clone();
            let is_digit = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_digit());
            let mut is_float = false;
            if fraction.starts_with('.') && is_digit(self.peek_at(1)) {
                let end = fraction[1..]
                    .find(|c: char| !(c.is_ascii_digit() || c == '_'))
                    .map_or(fraction.len(), |end| end + 1);
                float.extend(fraction[..end].chars().filter(|c| *c != '_'));
                self.pos += end;
                is_float = true;
            }
            let sign = usize::from(matches!(self.peek_at(1), Some(b'+' | b'-')));
            if matches!(self.peek_at(0), Some(b'e' | b'E')) && is_digit(self.peek_at(1 + sign)) {
                let exponent = self.rest();
                let end = exponent[1 + sign..]
                    .find(|c: char| !c.is_ascii_digit())
                    .map_or(exponent.len(), |end| end + 1 + sign);
                float.push_str(&exponent[..end]);
                self.pos += end;
                is_float = true;
            }
            if is_float {
                let value = float
                    .parse()
                    .map_err(|_| Trouble::syntax(self.here(at), format!("bad number {float}")))?;
                self.push(Tok::Float(value), at, space);
                return Ok(());
            }
        }
        if matches!(self.peek_at(0), Some(b'r' | b'i'))
            && !self.peek_at(1).is_some_and(|b| b.is_ascii_alphanumeric())
        {
            return Err(Trouble::unsupported(
                self.here(at),
                "rational and complex numbers",
            ));
        }
        if digits.is_empty() || self.peek().is_some_and(|c| c.is_ascii_digit()) {
            return Err(Trouble::syntax(self.here(at), "bad number"));
        }
        let value = i64::from_str_radix(&digits, radix)
            .map_err(|_| Trouble::unsupported(self.here(at), "an integer beyond 64 bits"))?;
        self.push(Tok::Int(value), at, space);
        Ok(())
    }

    fn quoted(&mut self, quote: char, interpolate: bool, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        self.pos += 1;
        let pieces = self.string_body(None, quote, interpolate, false)?;
        if self.rest().starts_with(':')
            && !self.rest().starts_with("::")
            && self.ternaries == 0
            && self.label_may_stand()
        {
            self.pos += 1;
            self.push(Tok::StrLabel(pieces), at, space);
        } else {
            self.push(Tok::Str(pieces), at, space);
        }
        Ok(())
    }

    fn label_may_stand(&self) -> bool {
        matches!(
            self.out.last().map(|token| &token.tok),
            Some(Tok::Op("{" | "," | "(" | "|") | Tok::Ident(_) | Tok::Newline)
        )
    }

    fn instance(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        self.pos += 1;
        if self.peek() == Some('@') {
            return Err(Trouble::unsupported(self.here(at), "class variables"));
        }
        let name = self.take_word();
        if name.is_empty() {
            return Err(Trouble::syntax(self.here(at), "`@` without a name"));
        }
        self.push(Tok::Instance(name), at, space);
        Ok(())
    }

    fn global(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        self.pos += 1;
        let mut name = self.take_word();
        if name.is_empty() {
            name = self.bump().map(String::from).unwrap_or_default();
        }
        self.push(Tok::Global(name), at, space);
        Ok(())
    }

    fn colon(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        let rest = self.rest();
        if rest.starts_with("::") {
            return self.operator(space);
        }
        let next = rest[1..].chars().next();
        // The `:` of `a ? b : c` has a blank after it; `a ? b :c` does not, but there a value has just ended.
        if self.ternaries > 0 && !self.wants_value(false) && (next.is_none_or(char::is_whitespace) || !space)
        {
            return self.operator(space);
        }
        match next {
            Some('"') => {
                self.pos += 2;
                let pieces = self.string_body(None, '"', true, false)?;
                self.push(Tok::Symbol(pieces), at, space);
            }
            Some('\'') => {
                self.pos += 2;
                let pieces = self.string_body(None, '\'', false, false)?;
                self.push(Tok::Symbol(pieces), at, space);
            }
            Some(c) if c.is_alphabetic() || c == '_' => {
                self.pos += 1;
                let mut name = self.take_word();
                if matches!(self.peek(), Some('?' | '!' | '='))
                    && !matches!(self.peek_at(1), Some(b'>' | b'=' | b'~'))
                {
                    name.extend(self.bump());
                }
                self.push(Tok::Symbol(vec![RawPiece::Text(name)]), at, space);
            }
            Some('@') => {
                self.pos += 2;
                let name = format!("@{}", self.take_word());
                self.push(Tok::Symbol(vec![RawPiece::Text(name)]), at, space);
            }
            _ => {
                const METHODS: &[&str] = &[
                    "[]=", "[]", "<=>", "===", "==", "=~", "!=", "**", "<<", ">>", "<=", ">=", "+", "-", "*",
                    "/", "%", "<", ">", "!", "&", "|", "^",
                ];
                let operator = METHODS.iter().find(|method| rest[1..].starts_with(**method));
                match operator {
                    Some(method) if self.wants_value(space) => {
                        self.pos += 1 + method.len();
                        self.push(Tok::Symbol(vec![RawPiece::Text((*method).to_owned())]), at, space);
                    }
                    _ => return self.operator(space),
                }
            }
        }
        Ok(())
    }

    /// `?x`, the string of one character.
    fn character(&mut self, space: bool) -> bool {
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

    fn regex(&mut self, open: Option<char>, close: char, at: usize, space: bool) -> Result<(), Trouble> {
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
    fn percent(&mut self, space: bool) -> Result<bool, Trouble> {
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
    fn heredoc(&mut self, space: bool) -> Result<bool, Trouble> {
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

    fn take_word(&mut self) -> String {
        let rest = self.rest();
        let length = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        self.pos += length;
        rest[..length].to_owned()
    }

    fn word(&mut self, space: bool) {
        let at = self.pos;
        let mut name = self.take_word();
        if self.peek() == Some('?') && name == "defined" {
            self.pos += 1;
            self.push(Tok::Keyword("defined?"), at, space);
            return;
        }
        if matches!(self.peek(), Some('?' | '!')) {
            let next = self.peek_at(1);
            let operator = next == Some(b'=') && !matches!(self.peek_at(2), Some(b'=' | b'~' | b'>'));
            // `x ?a : b` written as `flag?"a":"b"` is read by Ruby as a method too.
            if !operator {
                name.extend(self.bump());
            }
        }
        let after_dot = self.after_dot();
        let after_def = matches!(self.out.last().map(|token| &token.tok), Some(Tok::Keyword("def")));
        let label = self.peek() == Some(':')
            && self.peek_at(1) != Some(b':')
            && !after_dot
            && (self.ternaries == 0 || self.label_may_stand() && !matches!(self.peek_at(1), Some(b' ')));
        if label {
            self.pos += 1;
            self.push(Tok::Label(name), at, space);
            return;
        }
        let keyword = KEYWORDS.iter().find(|keyword| **keyword == name);
        let tok = match keyword {
            Some(keyword) if !after_dot && (!after_def || *keyword == "self") => Tok::Keyword(keyword),
            _ if name.chars().next().is_some_and(char::is_uppercase) && !name.ends_with(['?', '!']) => {
                Tok::Const(name)
            }
            _ => {
                self.note_local(&name);
                Tok::Ident(name)
            }
        };
        self.push(tok, at, space);
    }

    /// Remembers names that are assigned or block parameters.
    fn note_local(&mut self, name: &str) {
        let rest = self.rest().trim_start_matches([' ', '\t']);
        let assigned = rest.starts_with('=')
            && !rest.starts_with("==")
            && !rest.starts_with("=~")
            && !rest.starts_with("=>");
        let op_assigned = ["+=", "-=", "||=", "&&=", "*=", "/=", "<<="]
            .iter()
            .any(|op| rest.starts_with(op));
        let parameter = matches!(
            self.out.last().map(|token| &token.tok),
            Some(Tok::Op("|" | "," | "*" | "&"))
        ) && (rest.starts_with('|') || rest.starts_with(','));
        if assigned || op_assigned || parameter {
            self.locals.insert(name.to_owned());
        }
    }

    fn operator(&mut self, space: bool) -> Result<(), Trouble> {
        let at = self.pos;
        let Some(operator) = OPERATORS
            .iter()
            .find(|operator| self.rest().starts_with(**operator))
        else {
            let found = self.peek().unwrap_or('?');
            return Err(Trouble::syntax(self.here(at), format!("unexpected {found:?}")));
        };
        self.pos += operator.len();
        match *operator {
            "?" => self.ternaries += 1,
            ":" => self.ternaries = self.ternaries.saturating_sub(1),
            _ => {}
        }
        self.push(Tok::Op(operator), at, space);
        Ok(())
    }

    fn string_body(
        &mut self,
        open: Option<char>,
        close: char,
        interpolate: bool,
        regex: bool,
    ) -> Result<Vec<RawPiece>, Trouble> {
        self.pieces(open, Some(close), interpolate, regex)
    }

    /// The pieces of a string up to `close` (or the end), which is consumed.
    fn pieces(
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

    fn interpolation(&mut self) -> Result<Vec<Token>, Trouble> {
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

    fn escape(&mut self, text: &mut String) -> Result<(), Trouble> {
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

    fn code_point(
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
