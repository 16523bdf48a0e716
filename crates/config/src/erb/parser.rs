//! Tokens become a tree: precedence climbing for operators, recursive descent for the rest.

use std::collections::HashSet;
use std::rc::Rc;

use super::ast::{Body, Call, Kind, Node, Pair, Param, Piece, Rescue, Target};
use super::lexer::{RawPiece, Tok, Token, Trouble, tokens};

/// Expressions nested deeper than this are refused; real files stay below ten.
const MAX_DEPTH: usize = 64;

/// Parses a program with the marks of [`super::template`].
pub(super) fn parse(code: &str) -> Result<Node, Trouble> {
    let tokens = tokens(code)?;
    let mut parser = Parser {
        tokens: &tokens,
        pos: 0,
        locals: HashSet::new(),
        no_do: false,
        depth: 0,
    };
    let program = parser.statements(&[])?;
    match parser.peek() {
        Tok::End => Ok(program),
        other => Err(Trouble::syntax(
            parser.at(),
            format!("unexpected {}", describe(other)),
        )),
    }
}

pub(super) struct Parser<'t> {
    tokens: &'t [Token],
    pos: usize,
    locals: HashSet<String>,
    /// Set where `do` belongs to a loop or to an outer call.
    no_do: bool,
    depth: usize,
}

type Parsed = Result<Node, Trouble>;

fn node(kind: Kind, at: usize) -> Node {
    Node { kind, at }
}

/// Binding power of a binary operator, and whether it groups to the right.
fn binding(op: &str) -> Option<(u8, bool)> {
    Some(match op {
        ".." | "..." => (1, false),
        "||" => (2, false),
        "&&" => (3, false),
        "<=>" | "==" | "===" | "!=" | "=~" | "!~" => (5, false),
        "<" | "<=" | ">" | ">=" => (6, false),
        "|" | "^" => (7, false),
        "&" => (8, false),
        "<<" | ">>" => (9, false),
        "+" | "-" => (10, false),
        "*" | "/" | "%" => (11, false),
        "**" => (13, true),
        _ => return None,
    })
}

impl<'t> Parser<'t> {
    fn token(&self) -> &'t Token {
        &self.tokens[self.pos.min(self.tokens.len() - 1)]
    }

    fn peek(&self) -> &'t Tok {
        &self.token().tok
    }

    fn peek_next(&self) -> &'t Tok {
        &self.tokens[(self.pos + 1).min(self.tokens.len() - 1)].tok
    }

    fn at(&self) -> usize {
        self.token().at
    }

    fn next(&mut self) -> &'t Tok {
        let tok = &self.token().tok;
        self.pos = (self.pos + 1).min(self.tokens.len() - 1);
        tok
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Tok::Op(found) if *found == op)
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Tok::Keyword(found) if *found == keyword)
    }

    fn eat_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    fn eat_keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        if found {
            self.next();
        }
        found
    }

    fn expect_op(&mut self, op: &str) -> Result<(), Trouble> {
        if self.eat_op(op) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("`{op}'")))
        }
    }

    fn expect_end(&mut self) -> Result<(), Trouble> {
        if self.eat_keyword("end") {
            Ok(())
        } else {
            Err(self.unexpected("`end'"))
        }
    }

    fn unexpected(&self, wanted: &str) -> Trouble {
        Trouble::syntax(
            self.at(),
            format!("unexpected {}, expecting {wanted}", describe(self.peek())),
        )
    }

    fn skip_newlines(&mut self) {
        while matches!(self.peek(), Tok::Newline) {
            self.next();
        }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Trouble::unsupported(self.at(), "expressions nested this deep"));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Inside brackets `do` is free again.
    fn bracketed<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let outer = std::mem::replace(&mut self.no_do, false);
        let parsed = parse(self);
        self.no_do = outer;
        parsed
    }

    /// Statements up to one of `ends` (keywords), a closing bracket or the end.
    fn statements(&mut self, ends: &[&str]) -> Parsed {
        let at = self.at();
        let mut list = Vec::new();
        loop {
            self.skip_newlines();
            match self.peek() {
                Tok::End | Tok::OutClose | Tok::Op(")" | "}") => break,
                Tok::Keyword(keyword) if ends.contains(keyword) => break,
                _ => {}
            }
            list.push(self.deeper(Self::statement)?);
            let printed = matches!(
                self.tokens[self.pos.saturating_sub(1)].tok,
                Tok::Text(_) | Tok::OutClose
            );
            match self.peek() {
                Tok::Newline | Tok::End | Tok::OutClose | Tok::Op(")" | "}") => {}
                Tok::Keyword(keyword) if ends.contains(keyword) => {}
                _ if printed => {}
                other => {
                    return Err(Trouble::syntax(
                        self.at(),
                        format!("unexpected {}", describe(other)),
                    ));
                }
            }
        }
        if list.len() == 1 {
            return Ok(list.remove(0));
        }
        Ok(node(Kind::Sequence(list), at))
    }

    fn statement(&mut self) -> Parsed {
        let at = self.at();
        match self.peek() {
            Tok::Text(index) => {
                self.next();
                return Ok(node(Kind::Text(*index), at));
            }
            Tok::OutOpen => {
                self.next();
                let value = self.bracketed(|p| p.statements(&[]))?;
                if !matches!(self.next(), Tok::OutClose) {
                    return Err(Trouble::syntax(at, "the expression of <%= … %> is not complete"));
                }
                return Ok(node(Kind::Print(Box::new(value)), at));
            }
            _ => {}
        }
        let mut left = match self.multi_assignment()? {
            Some(assignment) => assignment,
            None => self.expression_statement()?,
        };
        if self.is_op(",") && matches!(left.kind, Kind::Assign(..)) {
            left = self.assigned_list(left)?;
        }
        loop {
            let Tok::Keyword(keyword) = self.peek() else {
                return Ok(left);
            };
            match *keyword {
                "if" | "unless" => {
                    self.next();
                    let condition = Box::new(self.expression_statement()?);
                    let nothing = Box::new(node(Kind::Nil, at));
                    left = if *keyword == "if" {
                        node(Kind::If(condition, Box::new(left), nothing), at)
                    } else {
                        node(Kind::If(condition, nothing, Box::new(left)), at)
                    };
                }
                "while" | "until" => {
                    self.next();
                    let condition = Box::new(self.expression_statement()?);
                    let body_first = matches!(left.kind, Kind::Begin { .. });
                    left = node(
                        Kind::While {
                            condition,
                            body: Box::new(left),
                            until: *keyword == "until",
                            body_first,
                        },
                        at,
                    );
                }
                "rescue" => {
                    self.next();
                    let fallback = self.expression_statement()?;
                    left = rescued(left, fallback, at);
                }
                _ => return Ok(left),
            }
        }
    }

    /// `a = x, y`: only a statement may assign a list without brackets.
    fn assigned_list(&mut self, assignment: Node) -> Parsed {
        let Kind::Assign(target, first) = assignment.kind else {
            return Ok(assignment);
        };
        let mut list = vec![*first];
        while self.eat_op(",") {
            self.skip_newlines();
            list.push(self.splat_or_expression()?);
        }
        let array = node(Kind::Array(list), assignment.at);
        Ok(node(Kind::Assign(target, Box::new(array)), assignment.at))
    }

    /// `a, b = …`; `None` when this is something else.
    fn multi_assignment(&mut self) -> Result<Option<Node>, Trouble> {
        let (start, at) = (self.pos, self.at());
        let mut targets = Vec::new();
        loop {
            let splat = self.eat_op("*");
            let Some(target) = self.simple_target() else { break };
            targets.push(if splat {
                Target::Splat(Box::new(target))
            } else {
                target
            });
            if !self.eat_op(",") {
                break;
            }
        }
        let several = targets.len() > 1 || matches!(targets.first(), Some(Target::Splat(_)));
        if !several || !self.is_op("=") {
            self.pos = start;
            return Ok(None);
        }
        self.next();
        self.skip_newlines();
        for target in &targets {
            self.declare(target);
        }
        let value = self.right_hand_list()?;
        Ok(Some(node(Kind::MultiAssign(targets, Box::new(value)), at)))
    }

    fn simple_target(&mut self) -> Option<Target> {
        let target = match self.peek() {
            Tok::Ident(name) if !name.ends_with(['?', '!']) => Target::Local(name.clone()),
            Tok::Instance(name) => Target::Instance(name.clone()),
            _ => return None,
        };
        self.next();
        Some(target)
    }

    fn declare(&mut self, target: &Target) {
        match target {
            Target::Local(name) => {
                self.locals.insert(name.clone());
            }
            Target::Splat(inner) => self.declare(inner),
            _ => {}
        }
    }

    /// `x` or `x, y, *z`, which is an array.
    fn right_hand_list(&mut self) -> Parsed {
        let at = self.at();
        let first = self.splat_or_expression()?;
        if !self.is_op(",") && !matches!(first.kind, Kind::Splat(_)) {
            return Ok(first);
        }
        let mut list = vec![first];
        while self.eat_op(",") {
            self.skip_newlines();
            list.push(self.splat_or_expression()?);
        }
        Ok(node(Kind::Array(list), at))
    }

    fn splat_or_expression(&mut self) -> Parsed {
        let at = self.at();
        if self.eat_op("*") {
            let value = self.ternary()?;
            return Ok(node(Kind::Splat(Box::new(value)), at));
        }
        self.expression()
    }

    /// An expression with `not`, `and` and `or`.
    pub(super) fn expression_statement(&mut self) -> Parsed {
        let mut left = self.not_expression()?;
        loop {
            let at = self.at();
            let Tok::Keyword(keyword @ ("and" | "or")) = self.peek() else {
                return Ok(left);
            };
            self.next();
            self.skip_newlines();
            let right = Box::new(self.not_expression()?);
            left = match *keyword {
                "and" => node(Kind::And(Box::new(left), right), at),
                _ => node(Kind::Or(Box::new(left), right), at),
            };
        }
    }

    fn not_expression(&mut self) -> Parsed {
        let at = self.at();
        if self.eat_keyword("not") {
            let value = self.deeper(Self::not_expression)?;
            return Ok(node(Kind::Not(Box::new(value)), at));
        }
        self.expression()
    }

    /// An expression, assignments included.
    fn expression(&mut self) -> Parsed {
        self.deeper(Self::assignment)
    }

    fn assignment(&mut self) -> Parsed {
        let at = self.at();
        // Ruby knows a name as a variable from its assignment on, the right-hand side included.
        if let (Tok::Ident(name), Tok::Op("=" | "||=" | "&&=" | "+=" | "-=" | "*=" | "/=" | "<<=" | "%=")) =
            (self.peek(), self.peek_next())
        {
            self.locals.insert(name.clone());
        }
        let left = self.ternary()?;
        let Tok::Op(op) = self.peek() else { return Ok(left) };
        let operator = match *op {
            "=" => "",
            "||=" | "&&=" | "+=" | "-=" | "*=" | "/=" | "%=" | "<<=" | "**=" | "|=" | "&=" => {
                &op[..op.len() - 1]
            }
            _ => return Ok(left),
        };
        let target = self.target_of(left)?;
        self.next();
        self.skip_newlines();
        let mut value = if operator.is_empty() && self.is_op("*") {
            self.right_hand_list()?
        } else {
            self.expression()?
        };
        if self.is_keyword("rescue") {
            self.next();
            let fallback = self.expression()?;
            value = rescued(value, fallback, at);
        }
        let kind = if operator.is_empty() {
            Kind::Assign(Box::new(target), Box::new(value))
        } else {
            Kind::OpAssign(Box::new(target), operator, Box::new(value))
        };
        Ok(node(kind, at))
    }

    fn target_of(&mut self, left: Node) -> Result<Target, Trouble> {
        Ok(match left.kind {
            Kind::Call(call) if call.bare => {
                self.locals.insert(call.name.clone());
                Target::Local(call.name)
            }
            Kind::Call(call) if call.name == "[]" => match call.receiver {
                Some(receiver) => Target::Index(receiver, call.args),
                None => return Err(Trouble::syntax(left.at, "nothing to assign to")),
            },
            Kind::Call(call) if call.receiver.is_some() => {
                return Err(Trouble::unsupported(
                    left.at,
                    format!("assigning to the attribute `{}'", call.name),
                ));
            }
            Kind::Instance(name) => Target::Instance(name),
            Kind::Global(name) => Target::Global(name),
            Kind::Constant(None, name) => Target::Constant(name),
            _ => {
                return Err(Trouble::syntax(
                    left.at,
                    "the left side of `=' cannot be assigned to",
                ));
            }
        })
    }

    fn ternary(&mut self) -> Parsed {
        let at = self.at();
        let condition = self.binary(0)?;
        if !self.is_op("?") {
            return Ok(condition);
        }
        self.next();
        self.skip_newlines();
        let then = self.deeper(Self::ternary_branch)?;
        self.skip_newlines();
        // `flag ? a: b` lexes as a label; the branch then holds only the name.
        if !self.eat_op(":") {
            return Err(self.unexpected("`:'"));
        }
        self.skip_newlines();
        let otherwise = self.deeper(Self::ternary_branch)?;
        Ok(node(
            Kind::If(Box::new(condition), Box::new(then), Box::new(otherwise)),
            at,
        ))
    }

    fn ternary_branch(&mut self) -> Parsed {
        self.assignment()
    }

    fn binary(&mut self, least: u8) -> Parsed {
        let at = self.at();
        let mut left = if least <= 4 && self.is_keyword("defined?") {
            self.next();
            let value = self.deeper(|p| p.unary())?;
            node(Kind::Defined(Box::new(value)), at)
        } else {
            self.unary()?
        };
        while let Tok::Op(op) = self.peek() {
            let Some((power, right_first)) = binding(op) else {
                break;
            };
            if power < least {
                break;
            }
            let op_at = self.at();
            self.next();
            self.skip_newlines_unless_range(op);
            if matches!(*op, ".." | "...") {
                let end = if self.starts_value() {
                    Some(Box::new(self.deeper(|p| p.binary(power + 1))?))
                } else {
                    None
                };
                left = node(Kind::Range(Some(Box::new(left)), end, *op == "..."), op_at);
                continue;
            }
            let right = self.deeper(|p| p.binary(if right_first { power } else { power + 1 }))?;
            left = match *op {
                "&&" => node(Kind::And(Box::new(left), Box::new(right)), op_at),
                "||" => node(Kind::Or(Box::new(left), Box::new(right)), op_at),
                "!=" => {
                    let equal = call(Some(left), "==", vec![right], op_at);
                    node(Kind::Not(Box::new(equal)), op_at)
                }
                "!~" => {
                    let found = call(Some(left), "=~", vec![right], op_at);
                    node(Kind::Not(Box::new(found)), op_at)
                }
                _ => call(Some(left), op, vec![right], op_at),
            };
        }
        Ok(left)
    }

    fn skip_newlines_unless_range(&mut self, op: &str) {
        if !matches!(op, ".." | "...") {
            self.skip_newlines();
        }
    }

    fn starts_value(&self) -> bool {
        matches!(
            self.peek(),
            Tok::Int(_)
                | Tok::Float(_)
                | Tok::Str(_)
                | Tok::Ident(_)
                | Tok::Const(_)
                | Tok::Instance(_)
                | Tok::Op("(" | "-")
        )
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        match self.peek() {
            Tok::Op("!") => {
                self.next();
                let value = self.deeper(Self::unary)?;
                Ok(node(Kind::Not(Box::new(value)), at))
            }
            Tok::Op("-") => {
                self.next();
                // The sign belongs to the number before methods are called on it, but not before `**`.
                match self.peek() {
                    Tok::Int(value) if !matches!(self.peek_next(), Tok::Op("**")) => {
                        self.next();
                        let value = node(Kind::Int(value.wrapping_neg()), at);
                        self.postfix(value)
                    }
                    Tok::Float(value) if !matches!(self.peek_next(), Tok::Op("**")) => {
                        self.next();
                        self.postfix(node(Kind::Float(-value), at))
                    }
                    _ => {
                        let value = self.deeper(|p| p.binary(12))?;
                        Ok(call(Some(value), "-@", Vec::new(), at))
                    }
                }
            }
            Tok::Op("+") => {
                self.next();
                self.deeper(Self::unary)
            }
            Tok::Op("&") => {
                // Only as an argument; `arguments` takes it before it gets here.
                Err(Trouble::syntax(at, "unexpected `&'"))
            }
            Tok::Op("..") | Tok::Op("...") => Err(Trouble::unsupported(at, "ranges without a beginning")),
            _ => {
                let primary = self.deeper(Self::primary)?;
                self.postfix(primary)
            }
        }
    }

    /// Method calls, indexes and constants after a value.
    fn postfix(&mut self, mut value: Node) -> Parsed {
        loop {
            let token = self.token();
            match &token.tok {
                Tok::Op(op @ ("." | "&.")) => {
                    self.next();
                    self.skip_newlines();
                    value = self.method_call(value, *op == "&.")?;
                }
                Tok::Op("::") if !token.space_before || !token.space_after => {
                    self.next();
                    match self.peek() {
                        Tok::Const(name)
                            if !matches!(self.peek_next(), Tok::Op("("))
                                || self.tokens[self.pos + 1].space_before =>
                        {
                            let at = self.at();
                            self.next();
                            value = node(Kind::Constant(Some(Box::new(value)), name.clone()), at);
                        }
                        _ => value = self.method_call(value, false)?,
                    }
                }
                Tok::Op("[") if !token.space_before || !is_open_call(&value) => {
                    let at = token.at;
                    self.next();
                    let args = self.bracketed(|p| p.arguments("]"))?;
                    value = call(Some(value), "[]", args, at);
                }
                _ => return Ok(value),
            }
        }
    }

    fn method_call(&mut self, receiver: Node, safe: bool) -> Parsed {
        let at = self.at();
        let name = match self.next() {
            Tok::Ident(name) | Tok::Const(name) => name.clone(),
            Tok::Op("(") => {
                self.pos -= 1;
                "call".to_owned()
            }
            Tok::Op(op @ ("+" | "-" | "*" | "/" | "%" | "==" | "<" | ">" | "<<" | "!" | "<=>")) => {
                (*op).to_owned()
            }
            Tok::Keyword("class") => "class".to_owned(),
            other => {
                return Err(Trouble::syntax(
                    at,
                    format!("unexpected {} after `.'", describe(other)),
                ));
            }
        };
        let (args, block) = self.call_rest(false)?;
        Ok(node(
            Kind::Call(Call {
                receiver: Some(Box::new(receiver)),
                name,
                args,
                block,
                safe,
                bare: false,
            }),
            at,
        ))
    }

    /// Arguments in parentheses or without, then a block.
    fn call_rest(&mut self, is_local: bool) -> Result<(Vec<Node>, Option<Rc<Body>>), Trouble> {
        let mut args = Vec::new();
        if self.is_op("(") && !self.token().space_before {
            self.next();
            args = self.bracketed(|p| p.arguments(")"))?;
        } else if !is_local && self.starts_command_argument() {
            let outer = std::mem::replace(&mut self.no_do, true);
            let parsed = self.command_arguments();
            self.no_do = outer;
            args = parsed?;
        }
        let block = if is_local { None } else { self.block()? };
        Ok((args, block))
    }

    fn starts_command_argument(&self) -> bool {
        let token = self.token();
        if !token.space_before {
            return false;
        }
        match &token.tok {
            Tok::Int(_)
            | Tok::Float(_)
            | Tok::Str(_)
            | Tok::Command(_)
            | Tok::Regex(..)
            | Tok::Symbol(_)
            | Tok::Words(_)
            | Tok::Symbols(_)
            | Tok::Ident(_)
            | Tok::Const(_)
            | Tok::Instance(_)
            | Tok::Global(_)
            | Tok::Label(_)
            | Tok::StrLabel(_)
            | Tok::Op("->" | "!")
            | Tok::Keyword(
                "nil" | "true" | "false" | "self" | "not" | "defined?" | "__FILE__" | "__LINE__" | "case",
            ) => true,
            Tok::Op("(") => true,
            Tok::Op("[") => true,
            Tok::Op("-" | "*" | "&" | "**" | "::") => !token.space_after,
            _ => false,
        }
    }

    fn command_arguments(&mut self) -> Result<Vec<Node>, Trouble> {
        let mut list = Arguments::default();
        loop {
            self.argument(&mut list)?;
            if !self.eat_op(",") {
                return Ok(list.finish());
            }
            self.skip_newlines();
        }
    }

    /// Arguments up to the closing bracket, which is consumed.
    fn arguments(&mut self, close: &str) -> Result<Vec<Node>, Trouble> {
        let mut list = Arguments::default();
        loop {
            self.skip_newlines();
            if self.eat_op(close) {
                return Ok(list.finish());
            }
            self.argument(&mut list)?;
            self.skip_newlines();
            if self.eat_op(close) {
                return Ok(list.finish());
            }
            if !self.eat_op(",") {
                return Err(self.unexpected(&format!("`{close}'")));
            }
        }
    }

    fn argument(&mut self, list: &mut Arguments) -> Result<(), Trouble> {
        let at = self.at();
        match self.peek() {
            Tok::Op("*") => {
                self.next();
                let value = self.ternary()?;
                list.plain.push(node(Kind::Splat(Box::new(value)), at));
            }
            Tok::Op("**") => {
                self.next();
                let value = self.ternary()?;
                list.pair(Pair::Splat(value), at);
            }
            Tok::Op("&") => {
                self.next();
                let value = self.ternary()?;
                list.plain.push(node(Kind::BlockPass(Box::new(value)), at));
            }
            Tok::Label(_) | Tok::StrLabel(_) => {
                let pair = self.labelled()?;
                list.pair(pair, at);
            }
            _ => {
                let value = self.not_expression()?;
                if self.eat_op("=>") {
                    self.skip_newlines();
                    let right = self.expression()?;
                    list.pair(Pair::Entry(value, right), at);
                } else {
                    list.plain.push(value);
                }
            }
        }
        Ok(())
    }

    /// `name: value`, `"text": value` and `name:` alone.
    fn labelled(&mut self) -> Result<Pair, Trouble> {
        let at = self.at();
        let key = match self.next() {
            Tok::Label(name) => vec![Piece::Text(name.clone())],
            Tok::StrLabel(pieces) => self.pieces(pieces)?,
            other => return Err(Trouble::syntax(at, format!("unexpected {}", describe(other)))),
        };
        if let (Tok::Op("," | "}" | ")"), [Piece::Text(name)]) = (self.peek(), key.as_slice()) {
            let value = bare(name, at);
            return Ok(Pair::Entry(node(Kind::Symbol(key), at), value));
        }
        self.skip_newlines();
        let value = self.expression()?;
        Ok(Pair::Entry(node(Kind::Symbol(key), at), value))
    }

    fn block(&mut self) -> Result<Option<Rc<Body>>, Trouble> {
        let close = match self.peek() {
            Tok::Op("{") => "}",
            Tok::Keyword("do") if !self.no_do => "end",
            _ => return Ok(None),
        };
        self.next();
        let known = self.locals.clone();
        let body = self.bracketed(|p| {
            p.deeper(|p| {
                let mut params = Vec::new();
                p.skip_newlines();
                if p.eat_op("|") {
                    params = p.params("|")?;
                } else {
                    p.eat_op("||");
                }
                let body = if close == "}" {
                    let body = p.statements(&[])?;
                    p.expect_op("}")?;
                    body
                } else {
                    let body = p.body_with_rescue()?;
                    p.expect_end()?;
                    body
                };
                Ok(Body { params, body })
            })
        })?;
        self.locals = known;
        Ok(Some(Rc::new(body)))
    }

    /// Parameters up to `close`, which is consumed.
    fn params(&mut self, close: &str) -> Result<Vec<Param>, Trouble> {
        let mut params = Vec::new();
        loop {
            self.skip_newlines_in(close);
            if self.eat_op(close) {
                return Ok(params);
            }
            params.push(self.param(close)?);
            self.skip_newlines_in(close);
            if matches!(self.peek(), Tok::Newline) && close == "|" {
                // `|a; b|` declares b.
                self.next();
                while let Tok::Ident(name) = self.peek() {
                    self.locals.insert(name.clone());
                    self.next();
                    self.eat_op(",");
                }
            }
            if self.eat_op(close) {
                return Ok(params);
            }
            if !self.eat_op(",") {
                return Err(self.unexpected(&format!("`{close}'")));
            }
        }
    }

    fn skip_newlines_in(&mut self, close: &str) {
        if close == ")" {
            self.skip_newlines();
        }
    }

    fn param(&mut self, close: &str) -> Result<Param, Trouble> {
        let at = self.at();
        let param = match self.next() {
            Tok::Ident(name) => {
                self.locals.insert(name.clone());
                if self.eat_op("=") {
                    // `|` closes the list, so a default may not use it.
                    let value = if close == "|" {
                        self.binary(8)?
                    } else {
                        self.ternary()?
                    };
                    Param::Optional(name.clone(), value)
                } else {
                    Param::Required(name.clone())
                }
            }
            Tok::Label(name) => {
                self.locals.insert(name.clone());
                let value = match self.peek() {
                    Tok::Op("," | ")" | "|") | Tok::Newline => None,
                    _ if close == "|" => Some(self.binary(8)?),
                    _ => Some(self.ternary()?),
                };
                Param::Keyword(name.clone(), value)
            }
            Tok::Op("*") => Param::Rest(self.optional_name()),
            Tok::Op("**") => Param::KeywordRest(self.optional_name()),
            Tok::Op("&") => Param::Block(self.optional_name()),
            Tok::Op("(") => Param::Nested(self.params(")")?),
            other => {
                return Err(Trouble::syntax(
                    at,
                    format!("unexpected {} among parameters", describe(other)),
                ));
            }
        };
        Ok(param)
    }

    fn optional_name(&mut self) -> String {
        if let Tok::Ident(name) = self.peek() {
            self.next();
            self.locals.insert(name.clone());
            return name.clone();
        }
        String::new()
    }

    /// Statements with optional `rescue`, `else` and `ensure`, up to `end`.
    fn body_with_rescue(&mut self) -> Parsed {
        let at = self.at();
        let ends = ["rescue", "else", "ensure", "end"];
        let body = self.statements(&ends)?;
        let mut rescues = Vec::new();
        while self.eat_keyword("rescue") {
            let mut classes = Vec::new();
            let mut name = None;
            while !matches!(self.peek(), Tok::Newline | Tok::Keyword("then") | Tok::End) {
                if self.eat_op("=>") {
                    name = Some(self.optional_name());
                    break;
                }
                classes.push(self.ternary()?);
                self.eat_op(",");
            }
            self.eat_keyword("then");
            let body = self.statements(&ends)?;
            rescues.push(Rescue { classes, name, body });
        }
        let otherwise = match self.eat_keyword("else") {
            true => Some(Box::new(self.statements(&ends)?)),
            false => None,
        };
        let ensure = match self.eat_keyword("ensure") {
            true => Some(Box::new(self.statements(&ends)?)),
            false => None,
        };
        if rescues.is_empty() && otherwise.is_none() && ensure.is_none() {
            return Ok(body);
        }
        Ok(node(
            Kind::Begin {
                body: Box::new(body),
                rescues,
                otherwise,
                ensure,
            },
            at,
        ))
    }

    pub(super) fn pieces(&mut self, raw: &[RawPiece]) -> Result<Vec<Piece>, Trouble> {
        let mut pieces = Vec::with_capacity(raw.len());
        for piece in raw {
            pieces.push(match piece {
                RawPiece::Text(text) => Piece::Text(text.clone()),
                RawPiece::Code(tokens) => {
                    let mut inner = Parser {
                        tokens,
                        pos: 0,
                        locals: self.locals.clone(),
                        no_do: false,
                        depth: self.depth,
                    };
                    let code = inner.deeper(|p| p.statements(&[]))?;
                    if !matches!(inner.peek(), Tok::End) {
                        return Err(inner.unexpected("the end of #{…}"));
                    }
                    Piece::Code(code)
                }
            });
        }
        Ok(pieces)
    }
}

impl Parser<'_> {
    fn primary(&mut self) -> Parsed {
        let token = self.token();
        let at = token.at;
        self.next();
        let kind = match &token.tok {
            Tok::Int(value) => Kind::Int(*value),
            Tok::Float(value) => Kind::Float(*value),
            Tok::Str(raw) => {
                let mut pieces = self.pieces(raw)?;
                // Adjacent literals are one string.
                while let Tok::Str(more) = self.peek() {
                    self.next();
                    pieces.extend(self.pieces(more)?);
                }
                Kind::Str(pieces)
            }
            Tok::Command(raw) => Kind::Command(self.pieces(raw)?),
            Tok::Regex(raw, flags) => Kind::Regex(self.pieces(raw)?, flags.clone()),
            Tok::Symbol(raw) => Kind::Symbol(self.pieces(raw)?),
            Tok::Words(words) => {
                let mut list = Vec::new();
                for word in words {
                    list.push(node(Kind::Str(self.pieces(word)?), at));
                }
                Kind::Array(list)
            }
            Tok::Symbols(names) => Kind::Array(
                names
                    .iter()
                    .map(|name| node(Kind::Symbol(vec![Piece::Text(name.clone())]), at))
                    .collect(),
            ),
            Tok::Instance(name) => Kind::Instance(name.clone()),
            Tok::Global(name) => Kind::Global(name.clone()),
            Tok::Ident(name) => return self.identifier(name, at),
            Tok::Const(name) => {
                let call_follows = self.is_op("(") && !self.token().space_before
                    || matches!(self.peek(), Tok::Str(_)) && self.token().space_before;
                if call_follows {
                    let (args, block) = self.call_rest(false)?;
                    Kind::Call(Call {
                        receiver: None,
                        name: name.clone(),
                        args,
                        block,
                        safe: false,
                        bare: false,
                    })
                } else {
                    Kind::Constant(None, name.clone())
                }
            }
            Tok::Keyword(keyword) => return self.keyword(keyword, at),
            Tok::Op("::") => match self.next() {
                Tok::Const(name) => Kind::Constant(None, name.clone()),
                _ => return Err(Trouble::syntax(at, "unexpected `::'")),
            },
            Tok::Op("(") => {
                let inner = self.bracketed(|p| p.statements(&[]))?;
                self.expect_op(")")?;
                if let Kind::Sequence(list) = &inner.kind
                    && list.is_empty()
                {
                    return Ok(node(Kind::Nil, at));
                }
                return Ok(node(Kind::Sequence(vec![inner]), at));
            }
            Tok::Op("[") => Kind::Array(self.bracketed(|p| p.arguments("]"))?),
            Tok::Op("{") => return self.bracketed(|p| p.hash(at)),
            Tok::Op("->") => return self.arrow(at),
            Tok::Label(name) => {
                return Err(Trouble::syntax(at, format!("unexpected label `{name}:'")));
            }
            other => return Err(Trouble::syntax(at, format!("unexpected {}", describe(other)))),
        };
        Ok(node(kind, at))
    }

    fn identifier(&mut self, name: &str, at: usize) -> Parsed {
        let is_local = self.locals.contains(name) && (!self.is_op("(") || self.token().space_before);
        if matches!(name, "lambda" | "proc") && !is_local {
            return match self.block()? {
                Some(body) => Ok(node(Kind::Lambda(body), at)),
                None => Err(Trouble::unsupported(at, format!("`{name}' without a block"))),
            };
        }
        if name == "loop" && !is_local {
            let block = self
                .block()?
                .ok_or_else(|| Trouble::unsupported(at, "`loop' without a block"))?;
            return Ok(node(
                Kind::Call(Call {
                    receiver: None,
                    name: name.to_owned(),
                    args: Vec::new(),
                    block: Some(block),
                    safe: false,
                    bare: false,
                }),
                at,
            ));
        }
        let parens = self.is_op("(") && !self.token().space_before;
        let (args, block) = self.call_rest(is_local)?;
        let bare = args.is_empty() && block.is_none() && !parens;
        Ok(node(
            Kind::Call(Call {
                receiver: None,
                name: name.to_owned(),
                args,
                block,
                safe: false,
                bare,
            }),
            at,
        ))
    }

    fn hash(&mut self, at: usize) -> Parsed {
        let mut pairs = Vec::new();
        loop {
            self.skip_newlines();
            if self.eat_op("}") {
                return Ok(node(Kind::Hash(pairs), at));
            }
            match self.peek() {
                Tok::Label(_) | Tok::StrLabel(_) => pairs.push(self.labelled()?),
                Tok::Op("**") => {
                    self.next();
                    pairs.push(Pair::Splat(self.ternary()?));
                }
                _ => {
                    let key = self.expression()?;
                    self.skip_newlines();
                    self.expect_op("=>")?;
                    self.skip_newlines();
                    pairs.push(Pair::Entry(key, self.expression()?));
                }
            }
            self.skip_newlines();
            if self.eat_op("}") {
                return Ok(node(Kind::Hash(pairs), at));
            }
            self.expect_op(",")?;
        }
    }

    fn arrow(&mut self, at: usize) -> Parsed {
        let known = self.locals.clone();
        let mut params = Vec::new();
        if self.eat_op("(") {
            params = self.params(")")?;
        } else {
            while let Tok::Ident(_) = self.peek() {
                params.push(self.param(")")?);
                if !self.eat_op(",") {
                    break;
                }
            }
        }
        let body = self.bracketed(|p| {
            if p.eat_op("{") {
                let body = p.statements(&[])?;
                p.expect_op("}")?;
                Ok(body)
            } else if p.eat_keyword("do") {
                let body = p.body_with_rescue()?;
                p.expect_end()?;
                Ok(body)
            } else {
                Err(p.unexpected("`{'"))
            }
        })?;
        self.locals = known;
        Ok(node(Kind::Lambda(Rc::new(Body { params, body })), at))
    }

    fn keyword(&mut self, keyword: &'static str, at: usize) -> Parsed {
        let kind = match keyword {
            "nil" => Kind::Nil,
            "true" => Kind::True,
            "false" => Kind::False,
            "self" => Kind::Myself,
            "__FILE__" => call_kind(None, "__FILE__", Vec::new()),
            "if" | "unless" => return self.conditional(keyword, at),
            "while" | "until" => {
                let condition = Box::new(self.loop_condition()?);
                let body = Box::new(self.bracketed(|p| p.statements(&["end"]))?);
                self.expect_end()?;
                Kind::While {
                    condition,
                    body,
                    until: keyword == "until",
                    body_first: false,
                }
            }
            "for" => {
                let mut targets = Vec::new();
                while let Some(target) = self.simple_target() {
                    self.declare(&target);
                    targets.push(target);
                    if !self.eat_op(",") {
                        break;
                    }
                }
                if targets.is_empty() || !self.eat_keyword("in") {
                    return Err(self.unexpected("`in'"));
                }
                let list = Box::new(self.loop_condition()?);
                let body = Box::new(self.bracketed(|p| p.statements(&["end"]))?);
                self.expect_end()?;
                let target = match targets.len() {
                    1 => targets.remove(0),
                    _ => Target::Nested(targets),
                };
                Kind::For(Box::new(target), list, body)
            }
            "case" => return self.case(at),
            "begin" => {
                let body = self.bracketed(Self::body_with_rescue)?;
                self.expect_end()?;
                match body.kind {
                    Kind::Begin { .. } => return Ok(body),
                    _ => Kind::Begin {
                        body: Box::new(body),
                        rescues: Vec::new(),
                        otherwise: None,
                        ensure: None,
                    },
                }
            }
            "def" => return self.definition(at),
            "module" => {
                let mut name = String::new();
                loop {
                    match self.next() {
                        Tok::Const(part) => name.push_str(part),
                        other => return Err(Trouble::syntax(at, format!("unexpected {}", describe(other)))),
                    }
                    if !self.eat_op("::") {
                        break;
                    }
                    name.push_str("::");
                }
                let body = Box::new(self.bracketed(|p| p.statements(&["end"]))?);
                self.expect_end()?;
                Kind::Module(name, body)
            }
            "return" | "next" | "break" => {
                let value = match self.peek() {
                    Tok::Newline | Tok::End | Tok::OutClose | Tok::Keyword(_) | Tok::Op("}" | ")" | ":") => {
                        None
                    }
                    _ => Some(Box::new(self.right_hand_list()?)),
                };
                match keyword {
                    "return" => Kind::Return(value),
                    "next" => Kind::Next(value),
                    _ => Kind::Break(value),
                }
            }
            "yield" => Kind::Yield(self.call_rest(false)?.0),
            "defined?" => {
                let value = self.unary()?;
                Kind::Defined(Box::new(value))
            }
            "not" => Kind::Not(Box::new(self.expression()?)),
            "class" | "alias" | "undef" | "redo" | "retry" | "super" | "__LINE__" => {
                return Err(Trouble::unsupported(at, format!("`{keyword}'")));
            }
            other => return Err(Trouble::syntax(at, format!("unexpected `{other}'"))),
        };
        Ok(node(kind, at))
    }

    fn loop_condition(&mut self) -> Parsed {
        let outer = std::mem::replace(&mut self.no_do, true);
        let condition = self.expression_statement();
        self.no_do = outer;
        let condition = condition?;
        self.eat_keyword("do");
        Ok(condition)
    }

    fn conditional(&mut self, keyword: &str, at: usize) -> Parsed {
        let ends = ["elsif", "else", "end"];
        let condition = Box::new(self.bracketed(Self::expression_statement)?);
        self.then();
        let then = Box::new(self.bracketed(|p| p.statements(&ends))?);
        let otherwise = if keyword != "unless" && self.eat_keyword("elsif") {
            let at = self.at();
            return Ok(node(
                Kind::If(
                    condition,
                    then,
                    Box::new(self.deeper(|p| p.conditional("elsif", at))?),
                ),
                at,
            ));
        } else if self.eat_keyword("else") {
            Box::new(self.bracketed(|p| p.statements(&["end"]))?)
        } else {
            Box::new(node(Kind::Nil, at))
        };
        self.expect_end()?;
        Ok(node(
            match keyword {
                "unless" => Kind::If(condition, otherwise, then),
                _ => Kind::If(condition, then, otherwise),
            },
            at,
        ))
    }

    fn then(&mut self) {
        self.skip_newlines();
        self.eat_keyword("then");
    }

    fn case(&mut self, at: usize) -> Parsed {
        let subject = match self.peek() {
            Tok::Newline => None,
            _ => Some(Box::new(self.bracketed(Self::expression_statement)?)),
        };
        self.skip_newlines();
        if self.is_keyword("in") {
            return Err(Trouble::unsupported(self.at(), "pattern matching"));
        }
        let mut branches = Vec::new();
        while self.eat_keyword("when") {
            let mut values = Vec::new();
            loop {
                values.push(self.splat_or_expression()?);
                if !self.eat_op(",") {
                    break;
                }
                self.skip_newlines();
            }
            self.then();
            let body = self.bracketed(|p| p.statements(&["when", "else", "end"]))?;
            branches.push((values, body));
        }
        if branches.is_empty() {
            return Err(self.unexpected("`when'"));
        }
        let otherwise = match self.eat_keyword("else") {
            true => self.bracketed(|p| p.statements(&["end"]))?,
            false => node(Kind::Nil, at),
        };
        self.expect_end()?;
        Ok(node(Kind::Case(subject, branches, Box::new(otherwise)), at))
    }

    fn definition(&mut self, at: usize) -> Parsed {
        let mut on_self = false;
        if self.is_keyword("self") && matches!(self.peek_next(), Tok::Op(".")) {
            self.next();
            self.next();
            on_self = true;
        }
        let name = match self.next() {
            Tok::Ident(name) | Tok::Const(name) => name.clone(),
            other => {
                return Err(Trouble::unsupported(
                    at,
                    format!("defining the method {}", describe(other)),
                ));
            }
        };
        // A method sees no variables from outside.
        let known = std::mem::take(&mut self.locals);
        let parsed = self.bracketed(|p| {
            let mut params = Vec::new();
            if p.eat_op("(") {
                params = p.params(")")?;
            } else {
                while !matches!(p.peek(), Tok::Newline | Tok::Op("=") | Tok::End) {
                    params.push(p.param(")")?);
                    p.eat_op(",");
                }
            }
            let body = if p.eat_op("=") {
                p.skip_newlines();
                p.statement()?
            } else {
                let body = p.body_with_rescue()?;
                p.expect_end()?;
                body
            };
            Ok(Body { params, body })
        });
        self.locals = known;
        Ok(node(
            Kind::Def {
                on_self,
                name,
                body: Rc::new(parsed?),
            },
            at,
        ))
    }
}

/// Arguments being collected: `a: 1` and `a => 1` gather in one hash at the end.
#[derive(Default)]
struct Arguments {
    plain: Vec<Node>,
    pairs: Vec<Pair>,
    pairs_at: usize,
}

impl Arguments {
    fn pair(&mut self, pair: Pair, at: usize) {
        if self.pairs.is_empty() {
            self.pairs_at = at;
        }
        self.pairs.push(pair);
    }

    fn finish(mut self) -> Vec<Node> {
        if !self.pairs.is_empty() {
            let hash = node(Kind::Hash(self.pairs), self.pairs_at);
            let block = match self.plain.last() {
                Some(Node {
                    kind: Kind::BlockPass(_),
                    ..
                }) => self.plain.pop(),
                _ => None,
            };
            self.plain.push(hash);
            self.plain.extend(block);
        }
        self.plain
    }
}

fn call_kind(receiver: Option<Node>, name: &str, args: Vec<Node>) -> Kind {
    Kind::Call(Call {
        receiver: receiver.map(Box::new),
        name: name.to_owned(),
        args,
        block: None,
        safe: false,
        bare: false,
    })
}

fn call(receiver: Option<Node>, name: &str, args: Vec<Node>, at: usize) -> Node {
    node(call_kind(receiver, name, args), at)
}

fn bare(name: &str, at: usize) -> Node {
    node(
        Kind::Call(Call {
            receiver: None,
            name: name.to_owned(),
            args: Vec::new(),
            block: None,
            safe: false,
            bare: true,
        }),
        at,
    )
}

/// A method call without arguments so far: `x [1]` would then pass an argument, not index.
fn is_open_call(value: &Node) -> bool {
    matches!(&value.kind, Kind::Call(call) if call.receiver.is_none() && !call.bare && call.args.is_empty())
}

fn rescued(body: Node, fallback: Node, at: usize) -> Node {
    node(
        Kind::Begin {
            body: Box::new(body),
            rescues: vec![Rescue {
                classes: Vec::new(),
                name: None,
                body: fallback,
            }],
            otherwise: None,
            ensure: None,
        },
        at,
    )
}

/// A token in the words of a message.
fn describe(tok: &Tok) -> String {
    match tok {
        Tok::End => "end-of-input".to_owned(),
        Tok::Newline => "end of the line".to_owned(),
        Tok::Text(_) => "text of the template".to_owned(),
        Tok::OutOpen | Tok::OutClose => "end of the tag".to_owned(),
        Tok::Op(op) => format!("`{op}'"),
        Tok::Keyword(keyword) => format!("`{keyword}'"),
        Tok::Ident(name) | Tok::Const(name) | Tok::Instance(name) | Tok::Global(name) => format!("`{name}'"),
        Tok::Label(name) => format!("`{name}:'"),
        Tok::Int(_) | Tok::Float(_) => "a number".to_owned(),
        Tok::Regex(..) => "a regular expression".to_owned(),
        Tok::Symbol(_) | Tok::Symbols(_) => "a symbol".to_owned(),
        Tok::Str(_) | Tok::StrLabel(_) | Tok::Command(_) | Tok::Words(_) => "a string".to_owned(),
    }
}
