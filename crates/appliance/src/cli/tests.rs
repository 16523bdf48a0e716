//! Kamal's command lines are ours (Kamal 2.12, every command and flag).

use clap::{CommandFactory as _, Parser as _};

use super::Cli;

#[test]
fn the_command_tree_is_consistent() {
    Cli::command().debug_assert();
}

fn parses(line: &str) -> Result<(), String> {
    let words = shlex::split(line).expect("words");
    let words = std::iter::once("appliance".to_owned()).chain(words);
    Cli::try_parse_from(words)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[test]
fn every_command_line_of_kamal_is_understood() {
    let lines = "
        setup
        setup -P --no-cache
        deploy
        deploy -P
        deploy --skip-push --no-cache -d staging
        redeploy
        redeploy --skip-push
        rollback 1234
        rollback 1234 -d staging
        details
        details -p
        audit
        config
        config -d staging
        docs
        docs proxy
        init
        remove -y
        upgrade -y --rolling
        version
        -d staging -c config/other.yml deploy
        deploy -h web1,web2
        deploy --hosts 'web*' --roles web,job
        deploy -v -H --version abc123
        -q app version
        app boot
        app boot --version abc123
        app start
        app stop
        app details
        app containers
        app images
        app version
        app exec 'bin/rails about'
        app exec bin/rails about
        app exec -i --reuse 'bin/rails console'
        app exec --interactive --reuse bash
        app exec -e A:1 B:2 -- env
        app exec --env A:1 --detach 'sleep 10'
        app exec --raw 'cat file'
        app exec -p -r web 'ls -la /app'
        app logs
        app logs -f
        app logs -n 20 -s 10m
        app logs --since 10m --grep error --grep-options '-C 5'
        app logs -g error -T
        app logs --follow --skip-timestamps -r job
        app logs --container-id abc123
        app stale_containers
        app stale_containers --stop
        app stale_containers -s
        app live
        app maintenance
        app maintenance --drain-timeout 10 --message 'Back soon'
        app remove
        build deliver
        build push
        build push --output registry --no-cache
        build pull
        build create
        build remove
        build details
        build dev
        build dev --output docker --no-cache
        proxy boot
        proxy start
        proxy stop
        proxy restart
        proxy details
        proxy reboot --rolling -y
        proxy boot_config set --publish --http-port 80 --log-max-size 10m
        proxy boot_config get
        proxy boot_config reset
        proxy logs
        proxy logs -f -n 5 -s 5m -g error
        proxy remove --force
        prune all
        prune images
        prune containers
        prune containers --retain 3
        registry setup
        registry setup -L
        registry login
        registry login -R
        registry logout --skip-local
        registry remove --skip-remote
        secrets fetch --adapter 1password --account me --from vault A B
        secrets extract A '{}'
        secrets print
        server exec uptime
        server exec -i bash
        server exec --raw 'cat /etc/hostname'
        server bootstrap
    ";
    let mut refused = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Err(error) = parses(line) {
            refused.push(format!("{line}\n{error}"));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn what_contradicts_itself_is_refused() {
    for line in [
        "app exec",
        "app exec -i --detach bash",
        "app exec --reuse --detach bash",
        "app logs --grep-options -i",
        "prune containers --retain 0",
        "deploy -v -q",
        "nonsense",
    ] {
        assert!(parses(line).is_err(), "{line}");
    }
}
