# Runs a template that was compiled to Ruby, and answers with its text on the standard output it was started with.
# What the template itself prints goes to standard error, so it cannot be taken for the answer.
require "json"

# Called by the compiled template: what was printed, and where in the file it came from.
class ApplianceTemplate
  attr_reader :marks

  def initialize(texts)
    @texts = texts
    @marks = []
  end

  # A piece of the template's own text.
  def text(out, index, source)
    @marks << [out.bytesize, source, true]
    @texts[index].dup
  end

  # An expression's tag.
  def tag(out, source)
    @marks << [out.bytesize, source, false]
  end
end

# Kamal runs templates in its own process, so whatever it has loaded is there.
module ApplianceSurroundings
  GEMS = %w[kamal active_support zeitwerk sshkit thor].freeze
  # These add methods to classes that are there anyway.
  STANDARD = %w[json securerandom set shellwords time yaml].freeze
  # The rest is loaded when a template names it: that is most of the time a start would take.
  CONSTANTS = {
    Base64: "base64", BigDecimal: "bigdecimal", Digest: "digest", ERB: "erb", Etc: "etc", FileUtils: "fileutils",
    Forwardable: "forwardable", IPAddr: "ipaddr", Logger: "logger", Net: "net/http", Open3: "open3",
    OpenSSL: "openssl", OpenStruct: "ostruct", OptionParser: "optparse", Pathname: "pathname", Resolv: "resolv",
    Singleton: "singleton", Socket: "socket", StringIO: "stringio", Tempfile: "tempfile", Timeout: "timeout",
    URI: "uri", Zlib: "zlib"
  }.freeze
  ACTIVE_SUPPORT = %w[active_support active_support/ordered_options active_support/core_ext/object/blank
                      active_support/core_ext/object/try active_support/core_ext/object/inclusion
                      active_support/core_ext/hash active_support/core_ext/string/inquiry
                      active_support/core_ext/string/filters active_support/core_ext/enumerable
                      active_support/core_ext/numeric/time active_support/core_ext/module/delegation].freeze

  def self.attempt(library)
    require library
    true
  rescue LoadError
    false
  end

  def self.load
    attempt("kamal")
    STANDARD.each { |library| attempt(library) }
    CONSTANTS.each { |name, library| Object.autoload(name, library) unless Object.const_defined?(name, false) }
    ACTIVE_SUPPORT.each { |library| attempt(library) }
    Object.include(Blank) unless Object.method_defined?(:blank?)
    attempt("dotenv") || Object.const_set(:Dotenv, PlainDotenv)
    unless defined?(::Kamal::Utils)
      Object.const_set(:Kamal, Module.new) unless defined?(::Kamal)
      ::Kamal.const_set(:Utils, PlainUtils)
    end
    Object.include(Lenient)
  end

  # `require` of a gem that Kamal brings, where it is not installed: its stand-in here is loaded already.
  module Lenient
    private

    def require(name)
      super
    rescue LoadError
      raise unless (GEMS + ["dotenv"]).include?(name.to_s.split("/").first)

      false
    end
  end

  # ActiveSupport's, for the classes that configurations use.
  module Blank
    def blank?
      case self
      when nil, false then true
      when String then strip.empty?
      else respond_to?(:empty?) ? !!empty? : false
      end
    end

    def present?
      !blank?
    end

    def presence
      self if present?
    end
  end

  # `Kamal::Utils` as far as configurations call it.
  module PlainUtils
    def self.docker_arch
      arch = `docker info --format '{{.Architecture}}'`.strip
      case arch
      when /aarch64/ then "arm64"
      when /x86_64/ then "amd64"
      else arch
      end
    end
  end

  # The dotenv gem's `load` and `overload`, for files of `NAME=value` lines.
  module PlainDotenv
    LINE = /\A\s*(?:export\s+)?([A-Za-z_][\w.]*)\s*(?:=|:\s)\s*('(?:\\'|[^'])*'|"(?:\\"|[^"])*"|[^#\n]*?)\s*(?:#.*)?\z/

    def self.parse(*files)
      given(files).each_with_object({}) do |file, found|
        next unless File.exist?(file)

        File.read(file, encoding: "BOM|UTF-8").each_line(chomp: true) do |line|
          found[$1] = value($2, found) if line =~ LINE
        end
      end
    end

    def self.load(*files)
      parse(*files).each { |name, value| ENV[name] ||= value }
    end

    def self.overload(*files)
      parse(*files).each { |name, value| ENV[name] = value }
    end

    def self.given(files)
      files.empty? ? [".env"] : files.flatten
    end

    def self.value(written, found)
      return written[1..-2] if written.start_with?("'")

      text = written.start_with?('"') ? written[1..-2].gsub('\n', "\n").gsub('\"', '"') : written
      text.gsub(/(\\)?\$(?:\{(\w+)\}|(\w+))/) { $1 ? $&[1..] : ENV[$2 || $3] || found[$2 || $3] || "" }
    end

    private_class_method :given, :value
  end
end

input = JSON.parse(DATA.read.force_encoding("UTF-8"))
answer = STDOUT.dup
STDOUT.reopen(STDERR)
$appliance = ApplianceTemplate.new(input["texts"])
ApplianceSurroundings.load
before = ENV.to_h
begin
  text = TOPLEVEL_BINDING.dup.eval(input["code"], "(erb)", 0)
  changed = ENV.to_h.reject { |name, value| before[name] == value }
  gone = before.keys - ENV.keys
  said = JSON.generate("text" => text, "marks" => $appliance.marks, "set" => changed, "gone" => gone)
rescue Exception => e
  line = e.backtrace_locations&.find { |place| place.path == "(erb)" }&.lineno || e.message[/\(erb\):(\d+)/, 1].to_i
  message = e.message.dup.force_encoding("UTF-8").scrub
  said = JSON.generate("class" => e.class.name, "message" => message, "line" => line)
end
answer.write(said)
answer.close
__END__
