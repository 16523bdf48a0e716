//! The Ruby subset as a tree.

use std::rc::Rc;

/// A node and where it stands in the program.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Offset in the compiled program.
    pub(super) at: usize,
}

/// Part of a string, command or regular expression.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Text(String),
    Code(Node),
}

/// One entry of a hash literal.
#[derive(Debug, Clone)]
pub(super) enum Pair {
    Entry(Node, Node),
    Splat(Node),
}

/// What can be assigned to.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Local(String),
    Instance(String),
    Global(String),
    Constant(String),
    Index(Box<Node>, Vec<Node>),
    Splat(Box<Target>),
    Nested(Vec<Target>),
}

/// A parameter of a block or method.
#[derive(Debug, Clone)]
pub(super) enum Param {
    Required(String),
    Optional(String, Node),
    Rest(String),
    Keyword(String, Option<Node>),
    KeywordRest(String),
    Block(String),
    Nested(Vec<Param>),
}

/// The body of a block, lambda or method.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) params: Vec<Param>,
    pub(super) body: Node,
}

/// One `rescue` clause.
#[derive(Debug, Clone)]
pub(super) struct Rescue {
    pub(super) classes: Vec<Node>,
    pub(super) name: Option<String>,
    pub(super) body: Node,
}

/// A method call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) receiver: Option<Box<Node>>,
    pub(super) name: String,
    pub(super) args: Vec<Node>,
    pub(super) block: Option<Rc<Body>>,
    /// `&.`
    pub(super) safe: bool,
    /// A bare word: a variable if there is one, else a call.
    pub(super) bare: bool,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Nil,
    True,
    False,
    Myself,
    Int(i64),
    Float(f64),
    Str(Vec<Piece>),
    Command(Vec<Piece>),
    Regex(Vec<Piece>, String),
    Symbol(Vec<Piece>),
    Array(Vec<Node>),
    Hash(Vec<Pair>),
    Range(Option<Box<Node>>, Option<Box<Node>>, bool),
    Splat(Box<Node>),
    BlockPass(Box<Node>),
    Instance(String),
    Global(String),
    Constant(Option<Box<Node>>, String),
    Call(Call),
    Assign(Box<Target>, Box<Node>),
    OpAssign(Box<Target>, &'static str, Box<Node>),
    MultiAssign(Vec<Target>, Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    While {
        condition: Box<Node>,
        body: Box<Node>,
        until: bool,
        body_first: bool,
    },
    For(Box<Target>, Box<Node>, Box<Node>),
    Case(Option<Box<Node>>, Vec<(Vec<Node>, Node)>, Box<Node>),
    Begin {
        body: Box<Node>,
        rescues: Vec<Rescue>,
        otherwise: Option<Box<Node>>,
        ensure: Option<Box<Node>>,
    },
    Def {
        on_self: bool,
        name: String,
        body: Rc<Body>,
    },
    Module(String, Box<Node>),
    Return(Option<Box<Node>>),
    Next(Option<Box<Node>>),
    Break(Option<Box<Node>>),
    Yield(Vec<Node>),
    Lambda(Rc<Body>),
    Defined(Box<Node>),
    Sequence(Vec<Node>),
    Text(usize),
    Print(Box<Node>),
}
