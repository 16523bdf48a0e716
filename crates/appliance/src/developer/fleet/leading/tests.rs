use std::cell::RefCell;

use appliance_rollout::{Gate, Member, Phase};
use tokio::sync::oneshot;

use super::*;

/// Two hosts, from the side of their leader.
struct Hosts {
    names: Vec<String>,
    group: Group,
    words: Vec<mpsc::Sender<Word>>,
    said: Vec<mpsc::Receiver<Word>>,
    tells: mpsc::Sender<(usize, Heard)>,
    hears: mpsc::Receiver<(usize, Heard)>,
}

impl Hosts {
    fn new() -> Self {
        let member = |name: &str| Member {
            name: name.to_owned(),
            primary: true,
        };
        let (tells, hears) = mpsc::channel(16);
        let (words, said) = (0..2).map(|_| mpsc::channel(16)).unzip();
        Self {
            names: vec!["a".to_owned(), "b".to_owned()],
            group: Group::new(vec![member("a"), member("b")], 9),
            words,
            said,
            tells,
            hears,
        }
    }
}

async fn cancelled(said: &mut mpsc::Receiver<Word>) -> String {
    loop {
        match said.recv().await.expect("the leader is there") {
            Word::Cancel { why } => return why,
            Word::Pass { .. } | Word::Leave | Word::Beat => {}
        }
    }
}

#[tokio::test]
async fn a_host_that_fails_while_a_hook_runs_is_heard_at_once() {
    let mut hosts = Hosts::new();
    let (_interrupt, mut interrupts) = mpsc::channel(1);
    let (ends, ended) = oneshot::channel::<()>();
    let ended = RefCell::new(Some(ended));
    let hook = |name: &'static str, hosts: Vec<String>| {
        let ended = ended.borrow_mut().take();
        async move {
            assert_eq!((name, hosts.join(",").as_str()), ("pre-app-boot", "a,b"));
            ended.expect("it runs once").await.map_err(Into::into)
        }
    };
    let mut leading = Leading {
        names: &hosts.names,
        wait: Duration::ZERO,
        words: &hosts.words,
        hears: &mut hosts.hears,
        interrupts: &mut interrupts,
    };
    let story = async {
        for host in 0..2 {
            let heard = Heard::Waits(Gate::Start);
            hosts.tells.send((host, heard)).await.expect("is heard");
        }
        let bad = Heard::Bad("its disk is full".to_owned());
        hosts.tells.send((1, bad)).await.expect("is heard");
        let why = cancelled(&mut hosts.said[0]).await;
        assert_eq!(
            why, "b: its disk is full",
            "the other was told while the hook ran"
        );
        let back = Heard::Bad("it went back".to_owned());
        hosts.tells.send((0, back)).await.expect("is heard");
        drop(hosts.tells);
        ends.send(()).expect("the hook still runs");
    };
    let (led, ()) = tokio::join!(leading.lead(&mut hosts.group, hook), story);
    assert_eq!(led, Led::Through);
}

#[tokio::test]
async fn the_first_ctrl_c_takes_hosts_back_and_the_second_leaves_them() {
    let mut hosts = Hosts::new();
    let (interrupt, mut interrupts) = mpsc::channel(1);
    let mut leading = Leading {
        names: &hosts.names,
        wait: Duration::ZERO,
        words: &hosts.words,
        hears: &mut hosts.hears,
        interrupts: &mut interrupts,
    };
    let hook = |_: &'static str, _: Vec<String>| std::future::pending();
    let story = async {
        for host in 0..2 {
            let heard = Heard::Waits(Gate::Start);
            hosts.tells.send((host, heard)).await.expect("is heard");
        }
        // Also while a hook runs that does not end.
        interrupt.send(()).await.expect("is heard");
        for said in &mut hosts.said {
            assert_eq!(cancelled(said).await, "interrupted by whoever led it");
        }
        let heard = Heard::Reached(Phase::Reverting);
        hosts.tells.send((0, heard)).await.expect("is heard");
        interrupt.send(()).await.expect("is heard");
    };
    let (led, ()) = tokio::join!(leading.lead(&mut hosts.group, hook), story);
    assert_eq!(led, Led::Left);
}
