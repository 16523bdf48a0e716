use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::runner::{Invocation, Outcome};

/// Answers every command with its own words, and remembers them.
#[derive(Default)]
struct Echo {
    seen: Mutex<Vec<Vec<String>>>,
}

impl Runner for Echo {
    fn run(&self, invocation: &Invocation) -> io::Result<Outcome> {
        self.seen
            .lock()
            .expect("no test panics here")
            .push(invocation.argv.clone());
        Ok(Outcome {
            code: Some(0),
            stdout: format!("<{}>\n", invocation.argv.join("|")).into_bytes(),
            stderr: String::new(),
        })
    }
}

fn try_in(directory: &Path, template: &str) -> Result<String, ErbError> {
    let runner = Echo::default();
    let env = [
        ("HOME", "/home/ann"),
        ("PATH", "/nonexistent"),
        ("HOST", "h1.example.com"),
        ("HOSTS", "a, b,,c"),
        ("EMPTY", ""),
        ("PORT", "3000"),
        ("URL", "https://u:p@app.example.com:8443/x?y=1"),
    ];
    let mut ctx = Context {
        env: env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        directory: directory.to_path_buf(),
        runner: &runner,
        now: "2026-01-01T00:00:00+00:00[UTC]".parse().expect("a time"),
    };
    render(template, Path::new("config/deploy.yml"), &mut ctx).map(|rendered| rendered.text)
}

fn try_render(template: &str) -> Result<String, ErbError> {
    try_in(Path::new("/nonexistent"), template)
}

/// Each line: an expression, and what `<%= … %>` prints for it.
fn check(cases: &[(&str, &str)]) {
    for (expression, expect) in cases {
        match try_render(&format!("<%= {expression} %>")) {
            Ok(found) => assert_eq!(found, *expect, "{expression}"),
            Err(error) => panic!("{expression}: {error:?}"),
        }
    }
}

fn check_template(cases: &[(&str, &str)]) {
    for (template, expect) in cases {
        match try_render(template) {
            Ok(found) => assert_eq!(found, *expect, "{template}"),
            Err(error) => panic!("{template}: {error:?}"),
        }
    }
}

#[test]
fn the_environment_is_looked_up_as_ruby_does() {
    check(&[
        (r##"ENV["HOST"]"##, "h1.example.com"),
        (r"ENV['NOPE']", ""),
        (r##"ENV["NOPE"] || "default""##, "default"),
        (r##"ENV["EMPTY"] || "default""##, ""),
        (r##"ENV["EMPTY"].presence || "default""##, "default"),
        (r##"ENV.fetch("HOST")"##, "h1.example.com"),
        (r##"ENV.fetch "NOPE", "x""##, "x"),
        (r##"ENV.fetch("NOPE", 86400)"##, "86400"),
        (r##"ENV.fetch("NOPE") { |name| name.downcase }"##, "nope"),
        (
            r##"ENV.fetch("NOPE") { `git rev-parse HEAD`.strip }"##,
            "<git|rev-parse|HEAD>",
        ),
        (r##"ENV.key?("HOST") && ENV["PORT"].to_i + 1"##, "3001"),
        (r##"ENV["HOST"]&.split(".")&.first"##, "h1"),
        (r##"ENV["NOPE"]&.split(".")&.first.to_s.empty?"##, "true"),
        (r##"ENV.fetch("NOPE", "true") == "true""##, "true"),
        (
            r##"ENV.values_at("HOST", "PORT").join(":")"##,
            "h1.example.com:3000",
        ),
        (
            r##"ENV.slice("PORT").map { |k, v| "#{k}=#{v}" }.first"##,
            "PORT=3000",
        ),
    ]);
}

#[test]
fn strings_have_ruby_s_literals_and_methods() {
    check(&[
        (r##""a#{1 + 1}b" 'c\n' "d\te""##, "a2bc\\nd\te"),
        (
            r##""#{ENV['HOST']}:#{ENV["PORT"] || "80"}""##,
            "h1.example.com:3000",
        ),
        ("%q(a (b) c) + %Q[<#{1}>] + %w[x y].join('-')", "a (b) c<1>x-y"),
        (r##"("a".."e").to_a.join"##, "abcde"),
        (
            r##"ENV["HOSTS"].split(",").map(&:strip).reject(&:empty?)"##,
            r##"["a", "b", "c"]"##,
        ),
        (r##""a b c".split(" ", 2)[1]"##, "b c"),
        (r##""x.y.z".sub(/^[^.]+\./, "")"##, "y.z"),
        (r##""a-b_c".gsub(/[-_]/, "-" => "+", "_" => "=")"##, "a+b=c"),
        (r##""v1.2"[/v(\d+)\.(\d+)/, 2]"##, "2"),
        (r##""john smith".gsub(/(\w+) (\w+)/, '\2 \1')"##, "smith john"),
        (
            r##""abc"[1..] + "abc"[-1] + "abc"[0, 2] + "abc"[5].to_s"##,
            "bccab",
        ),
        (r##""%05.1f|%-4s|%03d|%x|%<a>s" % [1] rescue "short""##, "short"),
        (
            r##"format("%05.1f|%-4s|%03d|%x", 2.25, "ab", 7, 255)"##,
            "002.2|ab  |007|ff",
        ),
        (
            r##""abc".tr("a-b", "x") + "aabb".squeeze + "hello".delete("l")"##,
            "xxcabheo",
        ),
        (
            r##""Hello World".parameterize + "fooBar".underscore"##,
            "hello-worldfoo_bar",
        ),
        (r##""a\u00e9\x41".length"##, "3"),
        (r##""1,2;3".scan(/\d/).sum(&:to_i)"##, "6"),
        (r##""abc".start_with?("ab", "x") ? :yes : :no"##, "yes"),
        ("'it''s'", "its"),
        (r##""az".succ + "Zz".succ + "a9".next"##, "baAAab0"),
        ("<<~TEXT.strip\n  one #{1}\n    two\nTEXT\n", "one 1\n  two"),
    ]);
}

#[test]
fn numbers_collections_and_control_flow_work() {
    check(&[
        ("-9223372036854775807 % 3", "2"),
        (
            "n = 0; 9223372036854775806.upto(9223372036854775807) { n += 1 }; n",
            "2",
        ),
        ("'abc'[1..9223372036854775807]", "bc"),
        ("365 * 24 * 60 * 60", "31536000"),
        ("7 / 2 + -7 / 2 + 7 % 3 + 2 ** 10", "1024"),
        ("0x1f + 0b11 + 017 + 1_000", "1049"),
        ("1.5 + 1 - 0.5", "2.0"),
        ("10.fdiv(4).round(1)", "2.5"),
        ("1e20", "1.0e+20"),
        (
            "[1, [2, 3]].flatten.map { |x| x * 2 }.select { _1 > 2 }.inspect",
            "[4, 6]",
        ),
        ("[3, 1, 2].sort.reverse.first(2)", "[3, 2]"),
        (
            r##"{ "a" => 1, b: 2, "c d": 3 }"##,
            r##"{"a"=>1, :b=>2, :"c d"=>3}"##,
        ),
        ("{ a: { b: [1, 2] } }.dig(:a, :b, 1)", "2"),
        ("(1..3).map { |i| \"w#{i}\" }.join(',')", "w1,w2,w3"),
        ("[[1, 2], [3, 4]].map { |a, b| a + b }", "[3, 7]"),
        (
            "%w[a b].each_with_index.map { |x, i| \"#{x}#{i}\" }.join + %w[a b].map.with_index(1) { |x, i| \"#{x}#{i}\" }.join",
            "a0b1a1b2",
        ),
        (
            "case ENV['PORT'].to_i when 1..1024 then 'low' when 3000, 3001 then 'dev' else 'x' end",
            "dev",
        ),
        ("x = 5; x > 3 ? 'big' : 'small'", "big"),
        ("if false then 1 elsif nil then 2 else 3 end", "3"),
        (
            "begin; Integer('x'); rescue ArgumentError => e; e.message; end",
            r##"invalid value for Integer(): "x""##,
        ),
        ("(raise 'x' rescue 'saved')", "saved"),
        ("a, *b = [1, 2, 3]; b.sum + a", "6"),
        (
            "n = 0; while n < 5; n += 1; next if n == 2; break if n == 4; end; n",
            "4",
        ),
        ("[1, 2, 3].inject(:+) + [1, 2].reduce(10) { |a, b| a + b }", "19"),
        ("[defined?(foo), defined?(puts)]", r##"[nil, "method"]"##),
        ("f = ->(x, y = 2) { x * y }; f.(3) + f.call(1, 1) + f[2]", "11"),
        (
            "[nil, 1, '', 'a'].compact_blank.inspect + [3,nil].compact.inspect",
            r##"[1, "a"][3]"##,
        ),
        ("!ENV['HOST'].nil? and not false", "true"),
        (
            "{a: 1}.merge(b: 2).transform_values { |v| v + 1 }.to_a.inspect",
            "[[:a, 2], [:b, 3]]",
        ),
        (
            "%w[x y].each_with_object({}) { |k, h| h[k] = k.upcase }['y']",
            "Y",
        ),
        ("5.minutes.to_i + 1.hour", "3900"),
        (
            "[1,2,3,4].each_slice(2).to_a.inspect rescue 'x'",
            "[[1, 2], [3, 4]]",
        ),
        ("h = Hash.new; h[:a] ||= 3; h[:a] ||= 4; h[:a]", "3"),
        ("%i[a b].include?(:a)", "true"),
        (
            "[\"b\", \"a\"].min_by { |x| x } + %w[aa b].max_by(&:length)",
            "aaa",
        ),
        ("def double(x) = x * 2; double(4)", "8"),
        ("$x = 3; $x + 1", "4"),
        ("@a ||= 'i'; @a", "i"),
    ]);
}

#[test]
fn libraries_configurations_use_are_there() {
    check(&[
        (
            r##"require "uri"; URI.parse(ENV["URL"]).host"##,
            "app.example.com",
        ),
        (
            r##"u = URI(ENV["URL"]); [u.scheme, u.port, u.user, u.path, u.query].join(" ")"##,
            "https 8443 u /x y=1",
        ),
        ("URI.parse('http://x').port", "80"),
        (
            r##"Time.now.strftime('%Y.%m.%d') + Time.now.utc.iso8601"##,
            "2026.01.012026-01-01T00:00:00Z",
        ),
        ("Time.now.to_i", "1767225600"),
        ("Date.today.to_s", "2026-01-01"),
        ("File.join('a/', '/b', 'c')", "a/b/c"),
        (r##"File.expand_path("~/.ssh/key")"##, "/home/ann/.ssh/key"),
        (r##"File.expand_path("../x", "/a/b")"##, "/a/x"),
        (
            "File.basename('/a/b.tar.gz', '.gz') + File.extname('x.rb') + File.dirname('/a/b')",
            "b.tar.rb/a",
        ),
        ("File.exist?('nope')", "false"),
        ("Dir.pwd", "/nonexistent"),
        (r##"JSON.parse('{"a": [1, {"b": null}]}')["a"][0]"##, "1"),
        (
            r##"require "yaml"; YAML.load("a: {b: [1, 0x1F]}").dig("a", "b", 1)"##,
            "31",
        ),
        (r##"YAML.safe_load("a: yes", symbolize_names: true)[:a]"##, "true"),
        ("[1e15, 1e14].join(' ')", "1.0e+15 100000000000000.0"),
        ("1234567.89.round(-2)", "1234600"),
        ("1.eql?(1.0)", "false"),
        ("case when 1 > 2 then 'a' else 'b' end", "b"),
        ("%x(aws ecr get-login-password)", "<aws|ecr|get-login-password>\n"),
        ("`echo a | wc -l`.strip", "<sh|-c|echo a | wc -l>"),
        (r##"ERB.new("<%= 1 + 1 %%>").result rescue $!.message"##, "2"),
        (r##"Shellwords.escape("a b")"##, r"a\ b"),
        ("RUBY_ENGINE", "ruby"),
    ]);
}

#[test]
fn tags_trim_as_kamal_s_trim_mode_does() {
    check_template(&[
        ("a <%= 1 %> b\n", "a 1 b\n"),
        ("x\n  <%- if true -%>\n  y\n  <%- end -%>\nz\n", "x\n  y\nz\n"),
        ("x\n  <% if true %>\n  y\n  <% end %>\nz\n", "x\n  \n  y\n  \nz\n"),
        ("a <%- 1 -%>\nb", "a b"),
        ("<%# gone <%= 1 %>x", "x"),
        ("<%% <%= '%%>' %>", "<% %>"),
        (
            "<% %w[a b].each do |v| -%>\n- <%= v %>\n<% end -%>\n",
            "- a\n- b\n",
        ),
        ("# <%= 1 %> in a comment\n", "# 1 in a comment\n"),
        ("<% 3.times { |i| %><%= i %><% } %>", "012"),
        ("<% unless ENV['NOPE'] %>yes<% else %>no<% end %>", "yes"),
        ("<% case 1\n   when 1 %>one<% when 2 %>two<% end %>", "one"),
        ("<%\n  # a note\n  x = 1\n%><%= x %>", "1"),
        ("<% for h in %w[a b] %><%= h %>,<% end %>", "a,b,"),
        ("<% y = if true\n 'a'\n else\n 'b'\n end %><%= y %>", "a"),
        ("<% ENV[\"NEW\"] = \"1\" %><%= ENV[\"NEW\"] %>", "1"),
        ("<% a = [1,\n 2] %><%= a.sum %>", "3"),
        (
            "<% x = %w[a b]\n  .map { |v| v.upcase }\n  .join %><%= x %>",
            "AB",
        ),
    ]);
}

#[test]
fn ruby_s_errors_keep_their_class_message_and_line() {
    let raised = |template: &str| match try_render(template) {
        Err(ErbError::Raised {
            line, class, message, ..
        }) => (line, class, message),
        other => panic!("{template}: {other:?}"),
    };
    for (template, line, class, message) in [
        (
            "a\n<%= ENV.fetch(\"NOPE\") %>",
            2,
            "KeyError",
            "key not found: \"NOPE\"",
        ),
        (
            "<%= nothing_here %>",
            1,
            "NameError",
            "undefined local variable or method `nothing_here' for main",
        ),
        (
            "\n\n<%= Nothing %>",
            3,
            "NameError",
            "uninitialized constant Nothing",
        ),
        (
            "<%= ENV['NOPE'].strip %>",
            1,
            "NoMethodError",
            "undefined method `strip' for nil",
        ),
        (
            "<%= ENV['NOPE'] + 'x' %>",
            1,
            "NoMethodError",
            "undefined method `+' for nil",
        ),
        (
            "<%= 'a' + nil %>",
            1,
            "TypeError",
            "no implicit conversion of nil into String",
        ),
        (
            "<%= 'a' + 1 %>",
            1,
            "TypeError",
            "no implicit conversion of Integer into String",
        ),
        ("<% abort \"stop\" %>", 1, "SystemExit", "stop"),
        (
            "<% raise 'must be given' unless ENV['NOPE'] %>",
            1,
            "RuntimeError",
            "must be given",
        ),
        (
            "<%= ENV['NOPE'] || raise('needed') %>",
            1,
            "RuntimeError",
            "needed",
        ),
        (
            "<%= ENV['NOPE'] || (raise 'needed') %>",
            1,
            "RuntimeError",
            "needed",
        ),
        (
            "<%= File.read('nope') %>",
            1,
            "Errno::ENOENT",
            "No such file or directory @ rb_sysopen - nope",
        ),
        ("<%= 1 / 0 %>", 1, "ZeroDivisionError", "divided by 0"),
        (
            "<%= Integer('12a') %>",
            1,
            "ArgumentError",
            "invalid value for Integer(): \"12a\"",
        ),
        (
            "<%= def f(x) = x; f %>",
            1,
            "ArgumentError",
            "wrong number of arguments (given 0, expected 1)",
        ),
        (
            "<% def f = f() %><%= f %>",
            1,
            "SystemStackError",
            "stack level too deep",
        ),
        ("<%= {a: 1}.fetch(:b) %>", 1, "KeyError", "key not found: :b"),
    ] {
        assert_eq!(
            raised(template),
            (line, class.to_owned(), message.to_owned()),
            "{template}"
        );
    }
}

#[test]
fn bad_ruby_is_refused_with_its_line() {
    for (template, line) in [
        ("x\n<% if true %>\ny\n", 2),
        ("x\n\n<%= 1 + %>", 3),
        ("<% end %>", 1),
        ("\n<%= \"abc %>", 2),
        ("a\n<% never closed", 2),
        ("<%= [1, 2 %>", 1),
        ("<% x = ) %>", 1),
    ] {
        match try_render(template) {
            Err(ErbError::Syntax { line: found, .. }) => assert_eq!(found, line, "{template}"),
            other => panic!("{template}: {other:?}"),
        }
    }
}

#[test]
fn ruby_beyond_the_subset_is_refused_without_a_ruby() {
    for template in [
        "<% class A; end %>",
        "<%= YAML.dump('x') %>",
        "<%= YAML.load('a: 2024-01-01') %>",
        "<%= SecureRandom.hex %>",
        "<%= 'a' =~ /(?<!x)a/ %>",
        "<% require 'some_gem' %>",
        "<%= 'abc'.unpack('C*') %>",
        "<%= Gem::Specification.find_by_name('x').gem_dir %>",
        "<% case {a: 1}\n in {a:} then 1\n end %>",
    ] {
        match try_render(template) {
            Err(ErbError::Unsupported { .. }) => {}
            other => panic!("{template}: {other:?}"),
        }
    }
}

#[test]
fn nothing_runs_for_ever() {
    for template in [
        "<% while true; end %>",
        "<% loop { } %>",
        "<% x = 'a' * 100; 100.times { x = x * 10 } %>",
        "<% x = []; loop { x << 'aaaaaaaaaaaaaaaaaaaaa' * 1000 } %>",
        "<% (1..10**12).each { } %>",
        "<% 10_000_000_000.times { } %>",
        "<% x = 'a'; 60.times { x << x } %>",
        "<% a = [1]; 40.times { a = [a, a] }; b = [1]; 40.times { b = [b, b] }; 2.times { a == b }; loop { a.to_s } %>",
    ] {
        match try_render(template) {
            Err(ErbError::Budget { .. }) => {}
            other => panic!("{template}: {:?}", other.map(|text| text.len())),
        }
    }
    for circle in ["a = []; a << a; a << a", "a = [1]; 50.times { a = [a, a] }"] {
        for use_of_it in [
            "a.to_s.size > 0",
            "a.flatten.size rescue 1",
            "a == [a, a]",
            "{a => 1} rescue 1",
            "[a, a].uniq.size",
            "a <=> [a]",
        ] {
            match try_render(&format!("<% {circle}; {use_of_it} %>x")) {
                Ok(text) => assert_eq!(text, "x"),
                Err(ErbError::Budget { .. } | ErbError::Unsupported { .. }) => {}
                Err(other) => panic!("{circle}; {use_of_it}: {other:?}"),
            }
        }
    }
    let deep = format!("<%= {}1{} %>", "(".repeat(10_000), ")".repeat(10_000));
    assert!(matches!(try_render(&deep), Err(ErbError::Unsupported { .. })));
}

#[test]
fn files_of_the_project_are_read_and_required() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        std::fs::File::create(path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .expect("written");
    };
    write(".ruby-version", "3.4.1\n");
    write(".env", "FROM_ENV=1\nHOST=ignored\nBOTH=\"$FROM_ENV-$HOST\"\n");
    write(
        "lib/hosts.rb",
        "module Hosts\n  PORT = 1\n  def self.web = \"h#{PORT}\"\n  def self.all(n)\n    (1..n).map { |i| \"#{web}-#{i}\" }\n  end\nend\n",
    );
    write("part.erb", "<% x = 2 %>part <%= x %>");
    for (template, expect) in [
        ("<%= File.read('.ruby-version').strip %>", "3.4.1"),
        (
            "<%= File.read(File.expand_path('.ruby-version', __dir__)).chomp %>",
            "3.4.1",
        ),
        (
            "<% require 'dotenv'; Dotenv.load('.env', 'missing') %><%= ENV['BOTH'] %> <%= ENV['HOST'] %>",
            "1-h1.example.com h1.example.com",
        ),
        (
            "<% require File.expand_path('lib/hosts.rb', Dir.pwd) %><%= Hosts.web %> <%= Hosts.all(2).join(' ') %> <%= Hosts::PORT %>",
            "h1 h1-1 h1-2 1",
        ),
        ("<% require_relative 'lib/hosts' %><%= Hosts.web %>", "h1"),
        ("<%= ERB.new(File.read('part.erb')).result %>", "part 2"),
        (
            "<%= File.exist?('.env') ? File.readlines('.env').size : 0 %>",
            "3",
        ),
    ] {
        match try_in(directory.path(), template) {
            Ok(found) => assert_eq!(found, expect, "{template}"),
            Err(error) => panic!("{template}: {error:?}"),
        }
    }
}

#[test]
fn a_place_in_the_result_leads_back_to_the_file() {
    let runner = Echo::default();
    let mut ctx = Context {
        env: BTreeMap::new(),
        directory: "/".into(),
        runner: &runner,
        now: "2026-01-01T00:00:00+00:00[UTC]".parse().expect("a time"),
    };
    let text = "a: 1\n<% 2.times do |i| -%>\nb<%= i %>: é x\n<% end -%>\nc: <%= \"1\\n2\" %> d\nlast\n";
    let rendered = render(text, Path::new("x"), &mut ctx).expect("valid");
    assert_eq!(rendered.text, "a: 1\nb0: é x\nb1: é x\nc: 1\n2 d\nlast\n");
    for (place, origin) in [
        ((1, 1), (1, 1)),
        ((2, 1), (3, 1)),
        ((2, 2), (3, 2)),
        ((3, 7), (3, 14)),
        ((4, 1), (5, 1)),
        ((5, 1), (5, 4)),
        ((5, 3), (5, 18)),
        ((6, 2), (6, 2)),
    ] {
        assert_eq!(rendered.origin(place.0, place.1), origin, "{place:?}");
    }
}

#[test]
fn only_the_commands_of_the_file_are_run() {
    let runner = Echo::default();
    let mut ctx = Context {
        env: BTreeMap::from([("PATH".to_owned(), "/nonexistent".to_owned())]),
        directory: "/".into(),
        runner: &runner,
        now: "2026-01-01T00:00:00+00:00[UTC]".parse().expect("a time"),
    };
    let text = "# <%= `one` %>\n<% if false %><%= `never` %><% end %><%= `two \"$X\"` %>";
    render(text, Path::new("x"), &mut ctx).expect("valid");
    let seen = runner.seen.into_inner().expect("no test panics here");
    assert_eq!(seen, [vec!["one"], vec!["sh", "-c", "two \"$X\""]]);
}

/// Words that templates are made of, to be thrown together.
const WORDS: &[&str] = &[
    "<%",
    "<%=",
    "<%-",
    "<%#",
    "%>",
    "-%>",
    "<%%",
    "\n",
    " ",
    "a: ",
    "if",
    "unless",
    "else",
    "end",
    "do",
    "|x|",
    "x",
    "y = ",
    "ENV",
    "[",
    "]",
    "\"HOST\"",
    "(",
    ")",
    "{",
    "}",
    ".",
    "fetch",
    "each",
    "map",
    "&:strip",
    "split",
    "\",\"",
    "'a'",
    "#{",
    "}",
    "\"",
    "'",
    "`",
    "%w[a b]",
    "||",
    "&&",
    "!",
    "?",
    ":",
    "::",
    "1",
    "-1",
    "2.5",
    "/a/",
    "..",
    "=>",
    "sub",
    "+",
    "*",
    "%",
    "<<",
    "<<~A\n",
    "A\n",
    "nil",
    "true",
    "case",
    "when",
    "def",
    "f",
    "while",
    "begin",
    "rescue",
    "raise",
    "File.read",
    "Dotenv.load",
    "@a",
    "$1",
    "->",
    "return",
    "next",
    "break",
    "for",
    "in",
    "=",
    "==",
    "*x",
    "**y",
    "k:",
    ";",
    "#",
    "é",
    "\\",
    "ERB.new(",
    ").result",
    "format",
    "\"%05.1f\"",
    "[0]",
    "[-1]",
    "[1..]",
    "to_i",
    "times",
    "first",
    "size",
    "presence",
    "=begin\n",
    "=end\n",
    "inspect",
];

proptest::proptest! {
    /// No template makes us panic or hang, and commands are run only where the file has them.
    #[test]
    fn any_template_ends(picks in proptest::collection::vec(0..WORDS.len(), 0..40), shape in 0..3, gap in "[ ]?") {
        let words = picks.iter().map(|index| WORDS[*index]).collect::<Vec<_>>().join(&gap);
        let template = match shape {
            0 => words,
            1 => format!("<%= {words} %>"),
            _ => format!("<% x = {words}\n %><%= x %>"),
        };
        let runner = Echo::default();
        let mut ctx = Context {
            env: BTreeMap::from([("HOST".to_owned(), "a,b".to_owned()), ("PATH".to_owned(), "/nonexistent".to_owned())]),
            directory: "/nonexistent".into(),
            runner: &runner,
            now: "2026-01-01T00:00:00+00:00[UTC]".parse().expect("a time"),
        };
        let rendered = render(&template, Path::new("x"), &mut ctx);
        if let Ok(rendered) = rendered {
            for line in 1..=rendered.text.lines().count() {
                let (source, column) = rendered.origin(line, 1);
                proptest::prop_assert!(source >= 1 && column >= 1 && source <= template.lines().count() + 1);
            }
        }
        let ran = runner.seen.into_inner().expect("no test panics here");
        proptest::prop_assert!(ran.is_empty() || template.contains('`') || template.contains("Dotenv"));
    }
}

#[test]
fn what_is_never_closed_is_told_where_it_begins() {
    for (template, line, column) in [
        ("a\n<% if true %>\nb\n", 2, 4),
        ("<% if true %><% unless nil %>x<% end %>\n", 1, 4),
        ("a\n\n<% [1].each do |n| %>\n<%= n %>\n", 3, 13),
        ("<% case 1\nwhen 1 %>\n", 1, 4),
    ] {
        match try_render(template) {
            Err(error @ ErbError::Syntax { .. }) => {
                assert_eq!((error.line(), error.column()), (line, column), "{template}");
                assert!(error.hint().is_some(), "{template}");
            }
            other => panic!("{template}: {other:?}"),
        }
    }
}

#[test]
fn pattern_matching_needs_ruby_itself() {
    for expression in [
        "({a: 1} in {a: Integer})",
        "(1 if {a: 1} in {a: Integer})",
        "({a: 1} => {a:}; a)",
        "case [1]\nin [Integer => n] then n\nend",
    ] {
        let found = try_render(&format!("<%= {expression} %>"));
        assert!(
            matches!(&found, Err(ErbError::Unsupported { what, .. }) if what == "pattern matching"),
            "{expression}: {found:?}"
        );
    }
}

#[test]
fn the_last_match_is_there_in_and_after_a_substitution() {
    check(&[
        (r#""a-b".gsub("-") { "<#{$&}>" }"#, "a<->b"),
        (r#""a1".sub(/[0-9]/) { $&.to_i + 1 }"#, "a2"),
        (r#""x1y2".gsub(/(\d)/, "") + $1 + $&"#, "xy22"),
        (r#""x1y2".sub(/(\d)/, "") + $~[1]"#, "xy21"),
        (r#""a".sub(/b/, ""); $~.inspect"#, "nil"),
    ]);
}

#[test]
fn json_base64_dates_and_counting_are_native() {
    check(&[
        ("3.times.map { |n| n * 2 }.join(',')", "0,2,4"),
        ("2.times.to_a.inspect", "[0, 1]"),
        (
            r#"{a: [1, nil, true], "b" => "x\"é\n"}.to_json"#,
            r#"{"a":[1,null,true],"b":"x\"é\n"}"#,
        ),
        ("JSON.generate(['a', {b: :c}])", r#"["a",{"b":"c"}]"#),
        ("require 'base64'; Base64.strict_encode64('hé')", "aMOp"),
        ("Base64.strict_decode64('aMOp')", "hé"),
        ("Base64.encode64('a' * 50).lines.map(&:size).inspect", "[61, 9]"),
        ("Base64.decode64(\"aM\nOp\")", "hé"),
        ("Date.new(2026, 1, 31) + 1", "2026-02-01"),
        ("Date.parse('2026-03-01').strftime('%d.%m.')", "01.03."),
    ]);
    for (expression, class) in [
        ("Base64.strict_decode64('a')", "ArgumentError"),
        ("JSON.parse('{')", "JSON::ParserError"),
    ] {
        match try_render(&format!("<%= {expression} %>")) {
            Err(ErbError::Raised { class: found, .. }) => assert_eq!(found, class, "{expression}"),
            other => panic!("{expression}: {other:?}"),
        }
    }
}
