//! Splits a template into text and tags, and turns it into one Ruby program, as Ruby's `ERB::Compiler` does.
//!
//! The program is ordinary Ruby except for three marks: [`TEXT`] followed by an index prints a piece of text,
//! [`OUT_OPEN`] and [`OUT_CLOSE`] enclose an expression to print.
//! Newlines of the template are kept, so a Ruby comment in a tag ends where Ruby would end it.

/// Prints the text whose index follows, up to the next [`TEXT`] mark.
pub(super) const TEXT: char = '\u{10FFFD}';
/// Opens an expression to print.
pub(super) const OUT_OPEN: char = '\u{10FFFE}';
/// Closes an expression to print.
pub(super) const OUT_CLOSE: char = '\u{10FFFF}';

/// What happens to the newline after a tag (`trim_mode:` of `ERB.new`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trim {
    /// Kept.
    None,
    /// `-`: `<%-` drops the blanks before it, `-%>` the newline after it. What Kamal uses.
    Explicit,
    /// `>`: dropped after every tag that ends a line.
    After,
    /// `<>`: dropped when a line starts and ends with a tag.
    Lines,
}

/// A template as a program.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// Ruby with the three marks.
    pub(super) code: String,
    /// Pieces of text, and the offset in the template where each begins.
    pub(super) texts: Vec<(String, usize)>,
    /// `(offset in code, offset in template)` of every stretch of code taken from the template, ascending.
    map: Vec<(usize, usize)>,
}

impl Program {
    /// The offset in the template that an offset in the code came from.
    pub(super) fn source(&self, code_offset: usize) -> usize {
        match self.map.partition_point(|(code, _)| *code <= code_offset) {
            0 => 0,
            index => {
                let (code, source) = self.map[index - 1];
                source + (code_offset - code)
            }
        }
    }

    fn text(&mut self, text: &mut String, start: usize) {
        if text.is_empty() {
            return;
        }
        self.map.push((self.code.len(), start));
        self.code.push(TEXT);
        self.code.push_str(&self.texts.len().to_string());
        self.code.push(TEXT);
        let newlines = text.matches('\n').count();
        self.texts.push((std::mem::take(text), start));
        if newlines == 0 {
            self.code.push(';');
        } else {
            self.code.extend(std::iter::repeat_n('\n', newlines));
        }
    }

    fn verbatim(&mut self, code: &str, start: usize) {
        self.map.push((self.code.len(), start));
        self.code.push_str(code);
    }
}

/// A tag that is not closed, or a character that cannot be in Ruby: offset and complaint.
pub(super) type TemplateError = (usize, &'static str);

/// Compiles a template.
///
/// # Errors
/// A tag that is not closed (Ruby would print its code), and characters that we use as marks.
pub(super) fn compile(template: &str, trim: Trim) -> Result<Program, TemplateError> {
    let mut program = Program::default();
    let mut text = String::new();
    let mut text_start = 0;
    let mut rest = 0;
    let mut line_began_with_tag = false;
    while let Some(found) = template[rest..].find("<%") {
        let tag = rest + found;
        text.push_str(&template[rest..tag]);
        let after = &template[tag + 2..];
        if after.starts_with('%') {
            text.push_str("<%");
            rest = tag + 3;
            continue;
        }
        let (kind, mut body) = match after.as_bytes().first() {
            Some(b'=') => (Kind::Print, tag + 3),
            Some(b'#') => (Kind::Comment, tag + 3),
            _ => (Kind::Run, tag + 2),
        };
        if trim == Trim::Explicit && after.starts_with('-') {
            body = tag + 3;
            let kept = text.trim_end_matches([' ', '\t']).len();
            // Only at the start of a line; a piece of text that begins mid-line has no line start of its own.
            let at_line_start = match text[..kept].chars().next_back() {
                Some(last) => last == '\n',
                None => text_start == 0 || template.as_bytes().get(text_start - 1) == Some(&b'\n'),
            };
            if at_line_start {
                text.truncate(kept);
            }
        }
        if text.contains('\n') || text_start == 0 {
            line_began_with_tag = text.is_empty() || text.ends_with('\n');
        }
        program.text(&mut text, text_start);
        let (code, end, minus) = tag_body(template, body, trim)?;
        if code.contains([TEXT, OUT_OPEN, OUT_CLOSE]) {
            return Err((tag, "a character that cannot be in Ruby"));
        }
        match kind {
            Kind::Run => {
                program.verbatim(&code, body);
                // As ERB::Compiler: a tag whose code ends with a newline ends its line there.
                if !code.ends_with('\n') {
                    program.code.push(';');
                }
            }
            Kind::Print => {
                program.map.push((program.code.len(), tag));
                program.code.push(OUT_OPEN);
                program.verbatim(&code, body);
                program.map.push((program.code.len(), tag));
                program.code.push(OUT_CLOSE);
                program.code.push(';');
            }
            Kind::Comment => program
                .code
                .extend(std::iter::repeat_n('\n', code.matches('\n').count())),
        }
        rest = end;
        let newline_follows = template[rest..].starts_with('\n');
        let drop_newline = match trim {
            Trim::None => false,
            Trim::Explicit => minus,
            Trim::After => true,
            Trim::Lines => line_began_with_tag,
        };
        if newline_follows && drop_newline {
            rest += 1;
            program.code.push('\n');
            line_began_with_tag = true;
        }
        text_start = rest;
    }
    text.push_str(&template[rest..]);
    program.text(&mut text, text_start);
    program.map.push((program.code.len(), template.len()));
    Ok(program)
}

#[derive(Clone, Copy)]
enum Kind {
    Run,
    Print,
    Comment,
}

/// The code of a tag, the offset after its end, and whether it ended with `-%>`.
fn tag_body(template: &str, body: usize, trim: Trim) -> Result<(String, usize, bool), TemplateError> {
    let mut code = String::new();
    let mut at = body;
    loop {
        let Some(found) = template[at..].find("%>") else {
            return Err((body.saturating_sub(2), "this ERB tag is not closed with %>"));
        };
        let end = at + found;
        if template[at..end].ends_with('%') {
            code.push_str(&template[at..end - 1]);
            code.push_str("%>");
            at = end + 2;
            continue;
        }
        code.push_str(&template[at..end]);
        let minus = trim == Trim::Explicit && code.ends_with('-');
        if minus {
            code.pop();
        }
        return Ok((code, end + 2, minus));
    }
}
