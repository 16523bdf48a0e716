//! Kamal's command lines are ours (Kamal 2.12, every command and flag).

mod flags;

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
        init --bundle
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
        app remove_container 1234
        app remove_containers
        app remove_images
        app remove_app_directories
        accessory boot mysql
        accessory boot all
        accessory reboot all
        accessory start mysql
        accessory stop mysql
        accessory restart mysql
        accessory details all
        accessory exec mysql 'mysql -u root'
        accessory exec mysql -i --reuse bash
        accessory exec mysql --raw 'cat /etc/hosts'
        accessory logs mysql
        accessory logs mysql -s 5m -n 10 -g error --grep-options '-i' -T
        accessory logs mysql -f
        accessory remove mysql -y
        accessory remove all
        accessory upgrade mysql --rolling -y
        accessory upload mysql
        accessory directories mysql
        accessory pull_image mysql
        accessory remove_container mysql
        accessory remove_image mysql
        accessory remove_service_directory mysql
        lock status
        lock acquire -m 'Holidays'
        lock acquire --message Holidays
        lock release
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
        proxy boot_config set --publish-host-ip 127.0.0.1 --https-port 443 --registry r --metrics-port 9 --debug
        proxy upgrade
        proxy remove_container
        proxy remove_image
        proxy remove_proxy_directory
        proxy logs -T
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
        server exec --interactive bash
        deploy --lock-wait --lock-wait-timeout 60 --lock-wait-interval 5
        deploy --skip-hooks --primary --destination staging --config-file config/other.yml
        deploy --verbose
        deploy --quiet
        redeploy --no-cache
        setup --skip-push
        app boot -r web -h web1
        app exec -r 'w*' --env A:1 --interactive bash
        app logs --lines 20 --roles web --hosts 'web{1,2}'
        app maintenance -r web
        accessory exec mysql --interactive --reuse bash
        accessory logs mysql --since 5m --lines 10 --grep error --follow --skip-timestamps
        accessory remove mysql --confirmed
        accessory reboot mysql
        accessory details mysql
        proxy boot_config set --repository r --image-version v --docker-options label=a
        proxy logs --since 5m --lines 5 --grep error --follow --skip-timestamps
        proxy reboot --confirmed
        registry logout -L -R
        secrets fetch -a 1password A
        rollback 1234 -r web
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
