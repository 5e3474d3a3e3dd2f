-- The first version of the schema dispatch and of its views in platform. Frozen: a change of it is a new migration.

CREATE TABLE dispatch.consent (
    node UUID NOT NULL,
    channel TEXT NOT NULL,
    topic TEXT NOT NULL,
    id UUID NOT NULL,
    origin UUID NOT NULL,
    state TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    request UUID,
    message UUID,
    proof JSONB NOT NULL,
    PRIMARY KEY (node, channel, topic, id)
);
CREATE UNIQUE INDEX consent_once_a_request ON dispatch.consent (node, channel, topic, request) WHERE request IS NOT NULL;
COMMENT ON TABLE dispatch.consent IS 'what comes through dispatch itself, written under the address''s lock before it is published';
COMMENT ON COLUMN dispatch.consent.node IS 'the address';
COMMENT ON COLUMN dispatch.consent.topic IS '*: all';
COMMENT ON COLUMN dispatch.consent.id IS 'of the event that is published; profile copies the row under it';
COMMENT ON COLUMN dispatch.consent.state IS 'confirmed | withdrawn | complained';
COMMENT ON COLUMN dispatch.consent.at IS 'business';
COMMENT ON COLUMN dispatch.consent.request IS 'the request that a pressed button confirms';

CREATE TABLE dispatch.suppression (
    node UUID NOT NULL,
    channel TEXT NOT NULL,
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    why TEXT NOT NULL,
    by TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (node, channel),
    UNIQUE (id)
);
CREATE INDEX suppression_by_time ON dispatch.suppression (at, id);
COMMENT ON COLUMN dispatch.suppression.node IS 'the address';
COMMENT ON COLUMN dispatch.suppression.channel IS '*: all';
COMMENT ON COLUMN dispatch.suppression.value IS 'the address as it is written';
COMMENT ON COLUMN dispatch.suppression.at IS 'business';

CREATE TABLE dispatch.lifted (
    id UUID NOT NULL,
    node UUID NOT NULL,
    channel TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    lifted_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX lifted_by_node ON dispatch.lifted (node);
COMMENT ON TABLE dispatch.lifted IS 'suppressions that were lifted: what decisions of their time could know';
COMMENT ON COLUMN dispatch.lifted.id IS 'of the suppression';
COMMENT ON COLUMN dispatch.lifted.node IS 'the address';
COMMENT ON COLUMN dispatch.lifted.channel IS '*: all';
COMMENT ON COLUMN dispatch.lifted.at IS 'business';
COMMENT ON COLUMN dispatch.lifted.lifted_at IS 'business';

CREATE TABLE dispatch.channel (
    name TEXT NOT NULL,
    adapter TEXT,
    enabled BOOLEAN NOT NULL,
    unit_cost NUMERIC NOT NULL,
    reach NUMERIC NOT NULL,
    act NUMERIC NOT NULL,
    lost NUMERIC NOT NULL,
    quiet TEXT,
    caps JSONB NOT NULL,
    budget JSONB NOT NULL,
    countries JSONB DEFAULT '[]' NOT NULL,
    settings JSONB NOT NULL,
    version INTEGER NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (name)
);
COMMENT ON COLUMN dispatch.channel.adapter IS 'NULL: the usable adapter that is preferred most';
COMMENT ON COLUMN dispatch.channel.quiet IS '21:00-09:00; empty: none; NULL: those of the deployment';
COMMENT ON COLUMN dispatch.channel.budget IS '{day, month}: the most that may be spent';
COMMENT ON COLUMN dispatch.channel.countries IS 'ISO 3166: the only ones it may write to; []: all';
COMMENT ON COLUMN dispatch.channel.updated_at IS 'business';

CREATE TABLE dispatch.policy (
    one BOOLEAN DEFAULT true NOT NULL,
    caps JSONB NOT NULL,
    mean_order NUMERIC NOT NULL,
    explore NUMERIC NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (one)
);
COMMENT ON COLUMN dispatch.policy.mean_order IS 'what an order is taken to be worth before the first one';
COMMENT ON COLUMN dispatch.policy.explore IS 'share of choices left to chance';

CREATE TABLE dispatch.switch (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    reason TEXT DEFAULT '' NOT NULL,
    by TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (scope, name)
);
COMMENT ON TABLE dispatch.switch IS 'a row is a kill switch that is on';
COMMENT ON COLUMN dispatch.switch.scope IS 'all | channel | rule';
COMMENT ON COLUMN dispatch.switch.name IS 'of the channel or the rule; empty for all';
COMMENT ON COLUMN dispatch.switch.at IS 'business';

CREATE TABLE dispatch.figure (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    value NUMERIC NOT NULL,
    basis BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);
COMMENT ON TABLE dispatch.figure IS 'what depends on the whole base, as immutable versions that a decision names';
COMMENT ON COLUMN dispatch.figure.name IS 'mean_order';
COMMENT ON COLUMN dispatch.figure.valid_from IS 'business';
COMMENT ON COLUMN dispatch.figure.basis IS 'how many orders it was made from';

CREATE TABLE dispatch.template (
    name TEXT NOT NULL,
    id UUID NOT NULL,
    version INTEGER NOT NULL,
    title TEXT DEFAULT '' NOT NULL,
    archived BOOLEAN DEFAULT 'false' NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (name),
    UNIQUE (id)
);
COMMENT ON COLUMN dispatch.template.version IS 'the newest, which is used';
COMMENT ON COLUMN dispatch.template.updated_at IS 'business';

CREATE TABLE dispatch.template_version (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    parts JSONB NOT NULL,
    by TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (name, version)
);
COMMENT ON COLUMN dispatch.template_version.at IS 'business';

CREATE TABLE dispatch.offer (
    name TEXT NOT NULL,
    id UUID NOT NULL,
    title TEXT DEFAULT '' NOT NULL,
    code TEXT NOT NULL,
    valid_seconds FLOAT,
    forms JSONB NOT NULL,
    unless_bought JSONB,
    version INTEGER NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (name),
    UNIQUE (id)
);
COMMENT ON COLUMN dispatch.offer.valid_seconds IS 'how long a code is good after it was given';
COMMENT ON COLUMN dispatch.offer.forms IS 'form → {code, title}';
COMMENT ON COLUMN dispatch.offer.unless_bought IS '{products, categories, within}; null: no guard';
COMMENT ON COLUMN dispatch.offer.updated_at IS 'business';

CREATE TABLE dispatch.allotment (
    node UUID NOT NULL,
    offer TEXT NOT NULL,
    code TEXT NOT NULL,
    title TEXT DEFAULT '' NOT NULL,
    message UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (node, offer)
);
COMMENT ON TABLE dispatch.allotment IS 'one code an offer and person; a second claim finds the same';
COMMENT ON COLUMN dispatch.allotment.node IS 'origin node of the run';
COMMENT ON COLUMN dispatch.allotment.message IS 'the first that named it';
COMMENT ON COLUMN dispatch.allotment.at IS 'business';
COMMENT ON COLUMN dispatch.allotment.expires_at IS 'business';

CREATE TABLE dispatch.message (
    id UUID NOT NULL,
    run UUID NOT NULL,
    run_version BIGINT NOT NULL,
    intended BOOLEAN NOT NULL,
    rule UUID NOT NULL,
    rule_name TEXT DEFAULT '' NOT NULL,
    kind TEXT NOT NULL,
    topic TEXT DEFAULT '' NOT NULL,
    step TEXT DEFAULT '' NOT NULL,
    template TEXT DEFAULT '' NOT NULL,
    origin UUID,
    profile UUID,
    decided_at TIMESTAMP WITH TIME ZONE NOT NULL,
    valid_until TIMESTAMP WITH TIME ZONE,
    ghost BOOLEAN DEFAULT 'false' NOT NULL,
    hops SMALLINT DEFAULT '0' NOT NULL,
    intent JSONB,
    state TEXT NOT NULL,
    reason_code TEXT,
    reason TEXT,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    claim UUID,
    chosen_at TIMESTAMP WITH TIME ZONE,
    decisions INTEGER DEFAULT '0' NOT NULL,
    attempts INTEGER DEFAULT '0' NOT NULL,
    repeats INTEGER DEFAULT '0' NOT NULL,
    pinned TEXT,
    purpose TEXT,
    template_version INTEGER,
    channel TEXT,
    adapter TEXT,
    address TEXT,
    address_node UUID,
    subject TEXT,
    body TEXT,
    html TEXT,
    urls JSONB,
    cost NUMERIC,
    units INTEGER,
    start_by TIMESTAMP WITH TIME ZONE,
    call_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE,
    jams SMALLINT DEFAULT '0' NOT NULL,
    delivery TEXT,
    delivered_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT message_state CHECK (state IN ('queued', 'claimed', 'calling', 'sent', 'withheld', 'failed', 'unknown'))
) WITH (fillfactor = 70);
CREATE INDEX message_due ON dispatch.message (kind, due_at) WHERE state = 'queued';
CREATE INDEX message_by_run ON dispatch.message (run);
CREATE INDEX message_by_update ON dispatch.message (updated_at, id);
CREATE INDEX message_chosen ON dispatch.message (adapter, chosen_at) WHERE state = 'claimed' AND chosen_at IS NOT NULL;
CREATE INDEX message_by_origin ON dispatch.message (origin, created_at);
CREATE INDEX message_leased ON dispatch.message (kind, lease_until) WHERE state = 'claimed';
CREATE INDEX message_calling ON dispatch.message (address_node) WHERE state = 'calling';
COMMENT ON COLUMN dispatch.message.id IS 'UUIDv5(run, step id)';
COMMENT ON COLUMN dispatch.message.run_version IS 'of the record that was applied; the higher one wins';
COMMENT ON COLUMN dispatch.message.intended IS 'false: only a cancel has come so far';
COMMENT ON COLUMN dispatch.message.kind IS 'marketing | transactional';
COMMENT ON COLUMN dispatch.message.origin IS 'the run''s origin node; NULL while only a cancel has come';
COMMENT ON COLUMN dispatch.message.profile IS 'as the intent named it; resolve by cdp.profile_alias';
COMMENT ON COLUMN dispatch.message.decided_at IS 'business: T of the decision';
COMMENT ON COLUMN dispatch.message.valid_until IS 'business';
COMMENT ON COLUMN dispatch.message.intent IS 'the whole record as it came: shared.events.Intended';
COMMENT ON COLUMN dispatch.message.reason_code IS 'services.dispatch.reasons.CODES';
COMMENT ON COLUMN dispatch.message.due_at IS 'business: when it is looked at next';
COMMENT ON COLUMN dispatch.message.lease_until IS 'infrastructure: a claim older than this is taken again';
COMMENT ON COLUMN dispatch.message.claim IS 'of the claim that holds it';
COMMENT ON COLUMN dispatch.message.chosen_at IS 'business: channel and text are chosen, the call may start';
COMMENT ON COLUMN dispatch.message.decisions IS 'rows in dispatch.decision';
COMMENT ON COLUMN dispatch.message.attempts IS 'rows in dispatch.attempt';
COMMENT ON COLUMN dispatch.message.repeats IS 'attempts made although the former is unknown';
COMMENT ON COLUMN dispatch.message.pinned IS 'the channel of an attempt whose outcome is unknown: no other may follow it';
COMMENT ON COLUMN dispatch.message.purpose IS 'of its template: marketing | transactional | confirmation';
COMMENT ON COLUMN dispatch.message.body IS 'the text part, or the whole text';
COMMENT ON COLUMN dispatch.message.urls IS 'the links that a person finds in it, by name';
COMMENT ON COLUMN dispatch.message.start_by IS 'infrastructure: the call starts before this or not at all';
COMMENT ON COLUMN dispatch.message.call_until IS 'infrastructure: no answer by then is unknown';
COMMENT ON COLUMN dispatch.message.created_at IS 'business';
COMMENT ON COLUMN dispatch.message.updated_at IS 'business';
COMMENT ON COLUMN dispatch.message.sent_at IS 'business';
COMMENT ON COLUMN dispatch.message.jams IS 'how often in a row its adapter was full';
COMMENT ON COLUMN dispatch.message.delivery IS 'what the provider told later: failed | delivered | bounced';
COMMENT ON COLUMN dispatch.message.delivered_at IS 'by the provider';

CREATE TABLE dispatch.decision (
    message UUID NOT NULL,
    number INTEGER NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    inputs JSONB NOT NULL,
    act TEXT NOT NULL,
    channel TEXT,
    address_node UUID,
    reason_code TEXT,
    reason TEXT,
    until TIMESTAMP WITH TIME ZONE,
    cost NUMERIC NOT NULL,
    probability NUMERIC NOT NULL,
    explored BOOLEAN NOT NULL,
    PRIMARY KEY (message, number)
);
CREATE INDEX decision_by_time ON dispatch.decision (at);
COMMENT ON COLUMN dispatch.decision.at IS 'business';
COMMENT ON COLUMN dispatch.decision.inputs IS 'services.dispatch.inputs.Inputs: all that was looked at';
COMMENT ON COLUMN dispatch.decision.act IS 'send | postpone | withhold';
COMMENT ON COLUMN dispatch.decision.probability IS 'of this choice, for weighing its outcome';

CREATE TABLE dispatch.alternative (
    message UUID NOT NULL,
    number INTEGER NOT NULL,
    channel TEXT NOT NULL,
    reach NUMERIC,
    act NUMERIC,
    base NUMERIC,
    effect NUMERIC,
    value NUMERIC,
    cost NUMERIC,
    units INTEGER,
    erosion NUMERIC,
    net NUMERIC,
    reason_code TEXT,
    reason TEXT,
    PRIMARY KEY (message, number, channel)
);
COMMENT ON COLUMN dispatch.alternative.number IS 'of the decision';
COMMENT ON COLUMN dispatch.alternative.effect IS 'reach · act − base';

CREATE TABLE dispatch.contact (
    origin UUID NOT NULL,
    message UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    channel TEXT NOT NULL,
    purpose TEXT NOT NULL,
    address_node UUID NOT NULL,
    network TEXT,
    source UUID,
    PRIMARY KEY (origin, message)
);
CREATE INDEX contact_by_address ON dispatch.contact (address_node, at);
CREATE INDEX contact_by_network ON dispatch.contact (network, at) WHERE network IS NOT NULL;
CREATE INDEX contact_by_source ON dispatch.contact (source, at) WHERE source IS NOT NULL;
COMMENT ON TABLE dispatch.contact IS 'what counts against caps: messages chosen, in calling, sent or unknown';
COMMENT ON COLUMN dispatch.contact.at IS 'business: when it was chosen';
COMMENT ON COLUMN dispatch.contact.network IS 'of the request, for confirmation mails';
COMMENT ON COLUMN dispatch.contact.source IS 'of the request, for confirmation mails';

CREATE TABLE dispatch.attempt (
    message UUID NOT NULL,
    number INTEGER NOT NULL,
    channel TEXT NOT NULL,
    adapter TEXT NOT NULL,
    address_node UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    cost NUMERIC NOT NULL,
    outcome TEXT,
    detail TEXT,
    provider_id TEXT,
    charged NUMERIC,
    ended_at TIMESTAMP WITH TIME ZONE,
    ask_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (message, number)
);
CREATE INDEX attempt_by_provider ON dispatch.attempt (adapter, provider_id) WHERE provider_id <> '';
CREATE INDEX attempt_to_ask ON dispatch.attempt (ask_at) WHERE ask_at IS NOT NULL;
COMMENT ON COLUMN dispatch.attempt.at IS 'business';
COMMENT ON COLUMN dispatch.attempt.cost IS 'the price that was expected';
COMMENT ON COLUMN dispatch.attempt.outcome IS 'sent | retry | bounced | failed | unknown | late; NULL while calling';
COMMENT ON COLUMN dispatch.attempt.charged IS 'what the provider says it costs; NULL: it says nothing, the price counts';
COMMENT ON COLUMN dispatch.attempt.ended_at IS 'business';
COMMENT ON COLUMN dispatch.attempt.ask_at IS 'infrastructure: of an unknown one, when its provider is asked once more';

CREATE TABLE dispatch.link (
    message UUID NOT NULL,
    number SMALLINT NOT NULL,
    url TEXT NOT NULL,
    PRIMARY KEY (message, number)
);

CREATE TABLE dispatch.hit (
    message UUID NOT NULL,
    kind TEXT NOT NULL,
    number SMALLINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    bot BOOLEAN NOT NULL,
    PRIMARY KEY (message, kind, number)
);
COMMENT ON COLUMN dispatch.hit.kind IS 'open | click';
COMMENT ON COLUMN dispatch.hit.number IS 'of the link; 0 for open';
COMMENT ON COLUMN dispatch.hit.at IS 'business';

CREATE TABLE dispatch.outcome (
    run UUID NOT NULL,
    run_version BIGINT NOT NULL,
    rule UUID NOT NULL,
    ghost BOOLEAN NOT NULL,
    entered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    goal_at TIMESTAMP WITH TIME ZONE,
    revenue NUMERIC NOT NULL,
    PRIMARY KEY (run)
);
CREATE INDEX outcome_by_rule ON dispatch.outcome (rule, closed_at);
COMMENT ON TABLE dispatch.outcome IS 'what came of each run when its goal window closed: what the choice will learn from';

CREATE TABLE dispatch.adapter (
    name TEXT NOT NULL,
    channel TEXT NOT NULL,
    settings JSONB NOT NULL,
    secrets BYTEA,
    secret_names JSONB NOT NULL,
    version INTEGER NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (name)
);
COMMENT ON TABLE dispatch.adapter IS 'what adapters were told by API';
COMMENT ON COLUMN dispatch.adapter.settings IS 'what may be read back';
COMMENT ON COLUMN dispatch.adapter.secrets IS 'what may not: encrypted under a key derived from the deployment''s secret';
COMMENT ON COLUMN dispatch.adapter.secret_names IS 'which secrets are set';
COMMENT ON COLUMN dispatch.adapter.updated_at IS 'business';

CREATE TABLE dispatch.pause (
    adapter TEXT NOT NULL,
    failures INTEGER NOT NULL,
    until TIMESTAMP WITH TIME ZONE,
    why TEXT NOT NULL,
    PRIMARY KEY (adapter)
);
COMMENT ON TABLE dispatch.pause IS 'adapters whose provider is away or asked to be left alone; no row: all is well';
COMMENT ON COLUMN dispatch.pause.failures IS 'exchanges in a row in which the provider was not there';
COMMENT ON COLUMN dispatch.pause.until IS 'business: no call before';

CREATE TABLE dispatch.report (
    adapter TEXT NOT NULL,
    id TEXT NOT NULL,
    what TEXT NOT NULL,
    message UUID,
    provider_id TEXT NOT NULL,
    address_node UUID,
    at TIMESTAMP WITH TIME ZONE,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    detail TEXT NOT NULL,
    charged NUMERIC,
    properties JSONB NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (adapter, id),
    CONSTRAINT report_state CHECK (state IN ('waiting', 'applied', 'stray'))
);
CREATE INDEX report_waiting_provider ON dispatch.report (adapter, provider_id) WHERE state = 'waiting';
CREATE INDEX report_by_message ON dispatch.report (message) WHERE message IS NOT NULL;
CREATE INDEX report_by_address ON dispatch.report (address_node) WHERE address_node IS NOT NULL;
CREATE INDEX report_by_time ON dispatch.report (received_at);
COMMENT ON TABLE dispatch.report IS 'what providers told of messages after they took them';
COMMENT ON COLUMN dispatch.report.id IS 'the provider''s for this report: it is applied once';
COMMENT ON COLUMN dispatch.report.what IS 'services.dispatch.channels.base.Told';
COMMENT ON COLUMN dispatch.report.address_node IS 'of a report that names an address';
COMMENT ON COLUMN dispatch.report.at IS 'by the provider';
COMMENT ON COLUMN dispatch.report.received_at IS 'business';
COMMENT ON COLUMN dispatch.report.state IS 'waiting: for our own answer to be stored | applied | stray';

CREATE TABLE dispatch.test (
    id UUID NOT NULL,
    channel TEXT NOT NULL,
    adapter TEXT NOT NULL,
    address_node UUID NOT NULL,
    by TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    cost NUMERIC NOT NULL,
    units INTEGER NOT NULL,
    call_until TIMESTAMP WITH TIME ZONE NOT NULL,
    outcome TEXT,
    detail TEXT,
    provider_id TEXT,
    charged NUMERIC,
    delivery TEXT,
    ended_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
);
CREATE INDEX test_by_channel ON dispatch.test (channel, at);
CREATE INDEX test_by_provider ON dispatch.test (adapter, provider_id) WHERE provider_id <> '';
COMMENT ON TABLE dispatch.test IS 'test messages by hand: they belong to no rule and nobody''s history, but they cost';
COMMENT ON COLUMN dispatch.test.at IS 'business';
COMMENT ON COLUMN dispatch.test.cost IS 'the price that was expected';
COMMENT ON COLUMN dispatch.test.call_until IS 'infrastructure: no answer by then is unknown';
COMMENT ON COLUMN dispatch.test.outcome IS 'as an attempt''s; NULL while calling';
COMMENT ON COLUMN dispatch.test.delivery IS 'what the provider told later';
COMMENT ON COLUMN dispatch.test.ended_at IS 'business';

CREATE TABLE dispatch.charge (
    message UUID NOT NULL,
    number INTEGER NOT NULL,
    channel TEXT NOT NULL,
    adapter TEXT NOT NULL,
    rule UUID,
    amount NUMERIC NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    day DATE NOT NULL,
    PRIMARY KEY (message, number)
);
CREATE INDEX charge_by_time ON dispatch.charge (at);
COMMENT ON TABLE dispatch.charge IS 'the cost ledger: what every attempt that was taken, or may have been, costs; one row an attempt';
COMMENT ON COLUMN dispatch.charge.number IS 'of the attempt; 0: the row is a test message''s';
COMMENT ON COLUMN dispatch.charge.rule IS 'NULL: a test message';
COMMENT ON COLUMN dispatch.charge.amount IS '0: it turned out that nothing was taken';
COMMENT ON COLUMN dispatch.charge.at IS 'business';
COMMENT ON COLUMN dispatch.charge.day IS 'of the shop''s zone: where spent counts it';

CREATE TABLE dispatch.spent (
    channel TEXT NOT NULL,
    day DATE NOT NULL,
    amount NUMERIC NOT NULL,
    PRIMARY KEY (channel, day)
);
COMMENT ON TABLE dispatch.spent IS 'sums of the cost ledger, kept with it: what a channel''s ceiling is compared with';
COMMENT ON COLUMN dispatch.spent.day IS 'of the shop''s zone';

CREATE TABLE dispatch.position (
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
COMMENT ON COLUMN dispatch.position.next IS 'number of the first record that is not handled';
COMMENT ON COLUMN dispatch.position.outbox_number IS 'last number of this partition''s own shard';
COMMENT ON COLUMN dispatch.position.seen IS 'shard -> [number, index], highest published record read';

CREATE TABLE dispatch.outbox (
    shard TEXT NOT NULL,
    number BIGINT NOT NULL,
    records BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (shard, number)
);
COMMENT ON COLUMN dispatch.outbox.records IS 'msgpack: [[topic, key, value, headers], …] in order';

CREATE TABLE dispatch.outbox_shard (
    shard TEXT NOT NULL,
    number BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (shard)
) WITH (fillfactor = 50);
COMMENT ON COLUMN dispatch.outbox_shard.number IS 'last number given';

ALTER TABLE dispatch.outbox ALTER COLUMN records SET STORAGE EXTERNAL;

CREATE VIEW platform.catalogue AS
    SELECT 'template' AS kind, t.name, v.purpose
    FROM dispatch.template t JOIN dispatch.template_version v ON v.name = t.name AND v.version = t.version
    WHERE NOT t.archived
    UNION ALL
    SELECT 'offer', name, NULL FROM dispatch.offer;
GRANT SELECT ON platform.catalogue TO PUBLIC;

CREATE VIEW platform.suppression AS
    SELECT node, channel, at + interval '10 seconds' AS from_at, NULL::timestamptz AS to_at FROM dispatch.suppression
    UNION ALL
    SELECT node, channel, at + interval '10 seconds', lifted_at + interval '10 seconds' FROM dispatch.lifted;
GRANT SELECT ON platform.suppression TO PUBLIC;
