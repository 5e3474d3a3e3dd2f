-- The first version of the schema triggers. Frozen: a change of it is a new migration.

CREATE SEQUENCE triggers.decision_seq AS BIGINT;

CREATE TABLE triggers.position (
    group_name TEXT NOT NULL,
    epoch TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next BIGINT NOT NULL,
    outbox_number BIGINT DEFAULT '0' NOT NULL,
    seen JSONB DEFAULT '{}' NOT NULL,
    read BIGINT DEFAULT '0' NOT NULL,
    applied BIGINT DEFAULT '0' NOT NULL,
    repeated BIGINT DEFAULT '0' NOT NULL,
    conflicting BIGINT DEFAULT '0' NOT NULL,
    erased BIGINT DEFAULT '0' NOT NULL,
    dead BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (group_name, epoch, topic, partition)
) WITH (fillfactor = 50);
COMMENT ON COLUMN triggers.position.next IS 'number of the first record that is not handled';
COMMENT ON COLUMN triggers.position.outbox_number IS 'last number of this partition''s own shard';
COMMENT ON COLUMN triggers.position.seen IS 'shard -> [number, index], highest published record read';

CREATE TABLE triggers.outbox (
    shard TEXT NOT NULL,
    number BIGINT NOT NULL,
    records BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (shard, number)
);
COMMENT ON COLUMN triggers.outbox.records IS 'msgpack: [[topic, key, value, headers], …] in order';

CREATE TABLE triggers.outbox_shard (
    shard TEXT NOT NULL,
    number BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (shard)
) WITH (fillfactor = 50);
COMMENT ON COLUMN triggers.outbox_shard.number IS 'last number given';

CREATE TABLE triggers.rule (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT rule_name_once UNIQUE (name)
);
COMMENT ON COLUMN triggers.rule.kind IS 'marketing | transactional; never changes';

CREATE TABLE triggers.run (
    node UUID NOT NULL,
    id UUID NOT NULL,
    rule UUID NOT NULL,
    version INTEGER NOT NULL,
    number INTEGER NOT NULL,
    ghost BOOLEAN NOT NULL,
    subject TEXT DEFAULT '' NOT NULL,
    entered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    ended_as TEXT,
    goal_at TIMESTAMP WITH TIME ZONE,
    revenue TEXT,
    open BOOLEAN NOT NULL,
    state JSONB NOT NULL,
    PRIMARY KEY (node, id),
    CONSTRAINT run_closed_has_ended CHECK (open OR ended_at IS NOT NULL)
) WITH (fillfactor = 80);
CREATE INDEX run_by_id ON triggers.run (id);
CREATE INDEX run_open ON triggers.run (rule, version) WHERE open;
CREATE INDEX run_by_rule ON triggers.run (rule, entered_at);
COMMENT ON COLUMN triggers.run.node IS 'origin node';
COMMENT ON COLUMN triggers.run.id IS 'UUIDv5(rule, origin node, entry key)';
COMMENT ON COLUMN triggers.run.number IS 'one higher with each decision';
COMMENT ON COLUMN triggers.run.ended_as IS 'how a run ends, see services.triggers.run.ENDS';
COMMENT ON COLUMN triggers.run.revenue IS 'decimal; known once the goal window has closed';
COMMENT ON COLUMN triggers.run.open IS 'something may still happen to it';
COMMENT ON COLUMN triggers.run.state IS 'the whole run (services.triggers.run.Run)';

CREATE TABLE triggers.item (
    node UUID NOT NULL,
    id UUID NOT NULL,
    kind SMALLINT NOT NULL,
    due TIMESTAMP WITH TIME ZONE NOT NULL,
    rule UUID,
    run UUID,
    held BOOLEAN DEFAULT false NOT NULL,
    payload JSONB DEFAULT '{}' NOT NULL,
    PRIMARY KEY (node, id)
) WITH (fillfactor = 80);
CREATE INDEX item_due ON triggers.item (due, node) WHERE NOT held;
CREATE INDEX item_aside ON triggers.item (due, node, id) WHERE held AND rule IS NULL;
CREATE INDEX item_held ON triggers.item (rule) WHERE held AND rule IS NOT NULL;
COMMENT ON COLUMN triggers.item.node IS 'of the event, the match, the run';
COMMENT ON COLUMN triggers.item.id IS 'natural key: the event; UUIDv5(kind, rule, node) or (kind, run)';
COMMENT ON COLUMN triggers.item.kind IS '0 event, 1 merged, 2 removed, 3 idle, 4 step, 5 goal, 6 schedule';
COMMENT ON COLUMN triggers.item.due IS 'an event''s learned-at; when a timer fires';
COMMENT ON COLUMN triggers.item.rule IS 'of timers';
COMMENT ON COLUMN triggers.item.run IS 'of a run''s own timers';
COMMENT ON COLUMN triggers.item.held IS 'its rule is paused';

CREATE TABLE triggers.schedule (
    rule UUID NOT NULL,
    due TIMESTAMP WITH TIME ZONE NOT NULL,
    cursor UUID,
    held BOOLEAN DEFAULT false NOT NULL,
    PRIMARY KEY (rule)
);
CREATE INDEX schedule_due ON triggers.schedule (due) WHERE NOT held;
COMMENT ON COLUMN triggers.schedule.due IS 'the moment to come, or being expanded: no claim passes it';
COMMENT ON COLUMN triggers.schedule.cursor IS 'last profile that was looked at for this moment';
COMMENT ON COLUMN triggers.schedule.held IS 'who came to it cannot read its rule';

CREATE TABLE triggers.decision (
    node UUID NOT NULL,
    seq BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    rule UUID NOT NULL,
    version INTEGER NOT NULL,
    run UUID,
    run_before INTEGER NOT NULL,
    run_after INTEGER NOT NULL,
    what TEXT NOT NULL,
    why TEXT NOT NULL,
    cause JSONB NOT NULL,
    profile UUID NOT NULL,
    nodes UUID[] NOT NULL,
    seen JSONB NOT NULL,
    effects JSONB NOT NULL,
    after JSONB,
    erased BOOLEAN DEFAULT false NOT NULL,
    PRIMARY KEY (node, seq)
);
CREATE INDEX decision_by_rule ON triggers.decision (rule, seq);
CREATE INDEX decision_by_seq ON triggers.decision (seq);
CREATE INDEX decision_by_run ON triggers.decision (run, seq);
CREATE INDEX decision_by_time ON triggers.decision (at);
COMMENT ON COLUMN triggers.decision.node IS 'origin node of the run; of the event where nobody entered';
COMMENT ON COLUMN triggers.decision.seq IS 'taken under the person''s locks: the order of decisions';
COMMENT ON COLUMN triggers.decision.at IS 'T';
COMMENT ON COLUMN triggers.decision.run IS 'absent where a rule failed before anybody entered';
COMMENT ON COLUMN triggers.decision.run_before IS 'run version before; 0: entry';
COMMENT ON COLUMN triggers.decision.cause IS 'what made it due: kind, event, moment';
COMMENT ON COLUMN triggers.decision.nodes IS 'of the person at T';
COMMENT ON COLUMN triggers.decision.seen IS 'the values that conditions looked at';
COMMENT ON COLUMN triggers.decision.after IS 'the run as it was then';
COMMENT ON COLUMN triggers.decision.erased IS 'what it told of somebody erased, or of a purged address, is gone';

CREATE TABLE triggers.rule_version (
    rule UUID NOT NULL,
    version INTEGER NOT NULL,
    document JSONB NOT NULL,
    author TEXT NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (rule, version),
    FOREIGN KEY(rule) REFERENCES triggers.rule (id)
);
COMMENT ON COLUMN triggers.rule_version.document IS 'with the id of every step; never changes';

CREATE TABLE triggers.rule_change (
    rule UUID NOT NULL,
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    author TEXT NOT NULL,
    swept BOOLEAN DEFAULT false NOT NULL,
    PRIMARY KEY (rule, number),
    FOREIGN KEY(rule) REFERENCES triggers.rule (id)
);
COMMENT ON COLUMN triggers.rule_change.state IS 'draft | active | paused | archived, from valid_from on';
COMMENT ON COLUMN triggers.rule_change.valid_from IS 'business time; at T the change with the greatest number valid by then is in force';
COMMENT ON COLUMN triggers.rule_change.swept IS 'the runs it ends have been told';

ALTER TABLE triggers.outbox ALTER COLUMN records SET STORAGE EXTERNAL;
