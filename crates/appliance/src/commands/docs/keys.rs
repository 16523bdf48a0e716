//! What each key of `config/deploy.yml` means, by its path; the schema knows the types.

/// Path and text; list elements and free names have no part in the path.
pub const KEYS: &[(&str, &str)] = &[
    (
        "service",
        "Name of the app: prefix of container names, and their label. Letters, digits, - and _.",
    ),
    (
        "image",
        "Repository of the image, without registry server and tag.",
    ),
    ("labels", "Further labels for the containers of every role."),
    (
        "volumes",
        "Volumes of every role, as `docker run --volume` takes them. They outlive every release.",
    ),
    (
        "registry",
        "Where images come from with --from-registry; otherwise they go straight to each host.\nserver: localhost:PORT keeps working and needs no registry at all.",
    ),
    ("registry/server", "Host of the registry; Docker Hub if absent."),
    (
        "registry/username",
        "User name, or a list with the name of a secret.",
    ),
    (
        "registry/password",
        "A list with the name of a secret. It travels sealed to each host.",
    ),
    (
        "servers",
        "Hosts, or roles with their hosts. The primary role (web) is proxied.",
    ),
    (
        "servers/hosts",
        "Host names or addresses; `host: tag` gives a host tags for env.",
    ),
    ("servers/cmd", "Command in place of the image's."),
    ("servers/options", "Flags of `docker run`, such as memory: 512m."),
    (
        "servers/proxy",
        "true or a map: this role is proxied too. false: the primary role is not.",
    ),
    (
        "servers/stop_timeout",
        "Seconds before a container that does not stop is killed.",
    ),
    ("env", "Environment. A plain map, or clear:, secret: and tags:."),
    ("env/clear", "Values as they are."),
    (
        "env/secret",
        "Names of secrets from .kamal/secrets; NAME:SECRET takes another secret's value.",
    ),
    ("env/tags", "Environment for hosts with a tag."),
    (
        "asset_path",
        "Directory of assets in the image: the assets of two releases are served together while they change.",
    ),
    ("hooks_path", "Directory of hooks. Default: .kamal/hooks"),
    ("hooks_output", "quiet or verbose, for all hooks or by hook."),
    (
        "secrets_path",
        "Base name of the files with secrets. Default: .kamal/secrets",
    ),
    (
        "error_pages_path",
        "Directory with 4xx.html and 5xx.html that the proxy shows.",
    ),
    (
        "require_destination",
        "true: every command needs -d. Default: false",
    ),
    ("primary_role", "The role that boots first. Default: web"),
    (
        "allow_empty_roles",
        "true: roles may have no hosts. Default: false",
    ),
    (
        "retain_containers",
        "Releases kept for a rollback, for each role. Default: 5",
    ),
    (
        "minimum_version",
        "Oldest version of Kamal that may read this file.",
    ),
    (
        "readiness_delay",
        "Seconds that a role without proxy and health check must stay up. Default: 7",
    ),
    (
        "deploy_timeout",
        "Seconds that a new container has to become healthy. Default: 30",
    ),
    (
        "drain_timeout",
        "Seconds that open requests have to end. Default: 30",
    ),
    (
        "stop_timeout",
        "Seconds before a container that does not stop is killed. Default: Docker's 10",
    ),
    ("run_directory", "Read and ignored, as in Kamal."),
    ("ssh", "How hosts are reached."),
    (
        "ssh/user",
        "Login name. Default here: deploy, and what ~/.ssh/config says; root keeps Kamal's meaning of \"not chosen\".",
    ),
    ("ssh/port", "Default: 22"),
    ("ssh/proxy", "Jump host: [user@]host."),
    ("ssh/keys", "Private keys to log in and to sign with."),
    ("ssh/keys_only", "Offer only these keys. Default: false"),
    (
        "builder",
        "How the image is built: by docker buildx, or docker build where that is enough.",
    ),
    ("builder/arch", "amd64, arm64, or a list."),
    (
        "builder/context",
        "Build context. Absent: a clean clone of what is committed; `.`: the directory as it is.",
    ),
    ("builder/dockerfile", "Default: Dockerfile"),
    ("builder/target", "Stage to build."),
    ("builder/args", "Build arguments; their values are not shown."),
    (
        "builder/secrets",
        "Names of secrets that the build may read (--secret id=NAME).",
    ),
    (
        "builder/ssh",
        "SSH agent or keys for the build, such as default=$SSH_AUTH_SOCK.",
    ),
    ("builder/cache", "type: gha or registry, options:, image:."),
    ("builder/remote", "Builder on another machine: ssh://user@host."),
    (
        "builder/local",
        "false: never build on this machine. Default: true",
    ),
    (
        "builder/driver",
        "Driver of buildx. Default: docker-container; docker; cloud ORG/NAME.",
    ),
    (
        "builder/pack",
        "Cloud Native Buildpacks in place of a Dockerfile.",
    ),
    ("builder/provenance", "Provenance attestation."),
    ("builder/sbom", "Bill of materials."),
    (
        "accessories",
        "Databases and other services beside the app, each with an image and a place.",
    ),
    ("accessories/image", "Image with its tag."),
    (
        "accessories/host",
        "The host it runs on; or hosts, role, roles, tag, tags.",
    ),
    (
        "accessories/port",
        "Port to publish: [ip:]host:container. Without an address it is bound to 127.0.0.1 here.",
    ),
    ("accessories/env", "As env of the app, without tags."),
    ("accessories/files", "Local files that are mounted: local:remote."),
    (
        "accessories/directories",
        "Directories beside the service that are mounted: they hold the data.",
    ),
    (
        "accessories/volumes",
        "Volumes, as `docker run --volume` takes them.",
    ),
    ("accessories/cmd", "Command in place of the image's."),
    ("accessories/options", "Flags of `docker run`."),
    ("proxy", "How visitors reach the app."),
    (
        "proxy/host",
        "Host name; several with commas, or as the list hosts. Without one: every host name that nobody else has.",
    ),
    ("proxy/hosts", "Host names; *.example.com stands for one label."),
    ("proxy/app_port", "Port the app listens on. Default: 80"),
    (
        "proxy/ssl",
        "true: a certificate is had by itself. A map: certificate_pem and private_key_pem name secrets.",
    ),
    ("proxy/ssl_redirect", "Send plain HTTP to HTTPS. Default: true"),
    (
        "proxy/forward_headers",
        "Trust X-Forwarded-* of clients. Default: true without ssl, false with.",
    ),
    (
        "proxy/response_timeout",
        "Seconds until the app has to begin its answer. Default: 30",
    ),
    (
        "proxy/path_prefix",
        "Only paths below this; several with commas, or as the list path_prefixes.",
    ),
    (
        "proxy/strip_path_prefix",
        "Take the prefix off before the app sees the path. Default: true",
    ),
    ("proxy/healthcheck", "path (/up), interval (1 s), timeout (5 s)."),
    (
        "proxy/buffering",
        "Hold requests or responses back until they are whole: memory (1 MiB) and then disk, max_request_body (413), max_response_body (500). Streams unless set.",
    ),
    ("proxy/logging", "Headers of requests and answers to log."),
    (
        "proxy/run",
        "Options of Kamal's proxy container; the host's own settings take their place here.",
    ),
    ("sshkit", "Limits of Kamal's SSH connections."),
    ("boot", "Groups of hosts during a rollout."),
    ("boot/limit", "Hosts at a time: a number, or a percentage."),
    ("boot/wait", "Seconds between two groups."),
    (
        "boot/parallel_roles",
        "true: roles of a host boot at the same time. Default: false",
    ),
    ("logging", "Docker's logging driver and its options."),
    ("output", "Where Kamal writes its own log of commands."),
    (
        "aliases",
        "Commands of your own: `console: app exec -i --reuse \"bin/rails console\"`. What follows on the command line is added.",
    ),
    (
        "x-appliance",
        "What Kamal has no word for: release command, watch window, canary, cron, backups. Kamal ignores it.",
    ),
];

/// The text of a key.
pub fn text(path: &str) -> Option<&'static str> {
    KEYS.iter().find(|(key, _)| *key == path).map(|(_, text)| *text)
}
