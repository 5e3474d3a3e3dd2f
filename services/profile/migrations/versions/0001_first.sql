-- The first version of the schema profile and of the views in cdp. Frozen: a change of it is a new migration.

CREATE TABLE profile.position (
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
COMMENT ON COLUMN profile.position.next IS 'number of the first record that is not handled';
COMMENT ON COLUMN profile.position.outbox_number IS 'last number of this partition''s own shard';
COMMENT ON COLUMN profile.position.seen IS 'shard -> [number, index], highest published record read';

CREATE TABLE profile.outbox (
    shard TEXT NOT NULL,
    number BIGINT NOT NULL,
    records BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (shard, number)
);
COMMENT ON COLUMN profile.outbox.records IS 'msgpack: [[topic, key, value, headers], …] in order';

CREATE TABLE profile.outbox_shard (
    shard TEXT NOT NULL,
    number BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (shard)
) WITH (fillfactor = 50);
COMMENT ON COLUMN profile.outbox_shard.number IS 'last number given';

CREATE TABLE profile.event_seen (
    id UUID NOT NULL,
    hash BYTEA NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY HASH (id);
COMMENT ON COLUMN profile.event_seen.hash IS 'SHA-256 of the canonical body; another one is a conflict';

CREATE TABLE profile.node (
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    folded TEXT COLLATE "C" NOT NULL,
    profile UUID NOT NULL,
    first_seen TIMESTAMP WITH TIME ZONE NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    asserted_at TIMESTAMP WITH TIME ZONE,
    confirmed_at TIMESTAMP WITH TIME ZONE,
    over_limit BOOLEAN NOT NULL,
    PRIMARY KEY (id)
) WITH (fillfactor = 90);
COMMENT ON COLUMN profile.node.id IS 'UUIDv5(deployment''s namespace, kind ‖ 0x1F ‖ value)';
COMMENT ON COLUMN profile.node.value IS 'in normal form';
COMMENT ON COLUMN profile.node.folded IS 'case-folded by Python';
COMMENT ON COLUMN profile.node.first_seen IS 'earliest occurred-at of an event that named it';
COMMENT ON COLUMN profile.node.asserted_at IS 'learned-at of the first time a source vouched for it';
COMMENT ON COLUMN profile.node.confirmed_at IS 'learned-at of the first button pressed';
COMMENT ON COLUMN profile.node.over_limit IS 'has more links than its kind may have: joins nothing';

CREATE TABLE profile.node_seen_before (
    node UUID NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    first_seen TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (node, until)
);

CREATE TABLE profile.profile (
    id UUID NOT NULL,
    component UUID NOT NULL,
    nodes UUID[] NOT NULL,
    last_learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    first_seen TIMESTAMP WITH TIME ZONE NOT NULL,
    timezone TEXT,
    state BYTEA NOT NULL,
    PRIMARY KEY (id)
) WITH (fillfactor = 70);
CREATE INDEX profile_by_component ON profile.profile (component);
COMMENT ON COLUMN profile.profile.id IS 'never reused';
COMMENT ON COLUMN profile.profile.component IS 'profiles whose nodes are connected by any link share it: one lock';
COMMENT ON COLUMN profile.profile.nodes IS 'present nodes, sorted';
COMMENT ON COLUMN profile.profile.timezone IS 'the trait, if it is an IANA zone';
COMMENT ON COLUMN profile.profile.state IS 'JSON of shared.facts.state.State: the fold of the nodes'' rows';

CREATE TABLE profile.membership (
    node UUID NOT NULL,
    from_at TIMESTAMP WITH TIME ZONE NOT NULL,
    to_at TIMESTAMP WITH TIME ZONE,
    profile UUID NOT NULL,
    PRIMARY KEY (node, from_at)
);
CREATE INDEX membership_by_profile ON profile.membership (profile);
COMMENT ON COLUMN profile.membership.to_at IS 'NULL: present';

CREATE TABLE profile.profile_alias (
    "old" UUID NOT NULL,
    "new" UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY ("old")
);

CREATE TABLE profile.link (
    a UUID NOT NULL,
    b UUID NOT NULL,
    strength SMALLINT NOT NULL,
    first_observed TIMESTAMP WITH TIME ZONE NOT NULL,
    id UUID NOT NULL,
    source UUID,
    trust SMALLINT NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    cut_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (a, b, strength),
    CONSTRAINT link_sorted CHECK (a < b)
);
CREATE INDEX link_by_b ON profile.link (b);
COMMENT ON COLUMN profile.link.strength IS 'services.profile.identity: the higher is taken first';
COMMENT ON COLUMN profile.link.id IS 'the event, or the act of a person, that observed it first';
COMMENT ON COLUMN profile.link.cut_at IS 'a merge by hand that was undone';

CREATE TABLE profile.cannot_link (
    a UUID NOT NULL,
    b UUID NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    principal TEXT NOT NULL,
    PRIMARY KEY (a, b),
    CONSTRAINT cannot_link_sorted CHECK (a < b)
);
CREATE INDEX cannot_link_by_b ON profile.cannot_link (b);

CREATE TABLE profile.event (
    node UUID NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    id UUID NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    trust SMALLINT NOT NULL,
    history BOOLEAN NOT NULL,
    first BOOLEAN NOT NULL,
    source UUID NOT NULL,
    order_key TEXT,
    message_id TEXT,
    properties JSONB NOT NULL,
    rest JSONB NOT NULL,
    PRIMARY KEY (node, learned_at, id)
);
COMMENT ON COLUMN profile.event.node IS 'origin node';
COMMENT ON COLUMN profile.event.trust IS '0 public, 1 signed, 2 secret, 3 internal';
COMMENT ON COLUMN profile.event.first IS 'first report of its order by a source that may state money';
COMMENT ON COLUMN profile.event.rest IS 'ids, traits, context, hops, hash: what else the event carried';

CREATE TABLE profile.trait (
    node UUID NOT NULL,
    name TEXT NOT NULL,
    id UUID NOT NULL,
    trust SMALLINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    value JSONB NOT NULL,
    folded TEXT COLLATE "C",
    number NUMERIC,
    PRIMARY KEY (node, name, id)
);
COMMENT ON COLUMN profile.trait.id IS 'the event';
COMMENT ON COLUMN profile.trait.value IS 'JSON null: the trait was taken away';
COMMENT ON COLUMN profile.trait.folded IS 'text, case-folded by Python';

CREATE TABLE profile.cart_op (
    node UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    order_key TEXT,
    items JSONB NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (node, at, id)
);
COMMENT ON COLUMN profile.cart_op.at IS 'occurred at';
COMMENT ON COLUMN profile.cart_op.id IS 'the event';
COMMENT ON COLUMN profile.cart_op.kind IS 'add | remove | view | order';
COMMENT ON COLUMN profile.cart_op.items IS '[{product_id, quantity, price, product}, …]; quantity null: all of it';

CREATE TABLE profile.orders (
    key TEXT COLLATE "C" NOT NULL,
    node UUID,
    event UUID,
    at TIMESTAMP WITH TIME ZONE,
    first_learned_at TIMESTAMP WITH TIME ZONE,
    first_event UUID,
    total NUMERIC,
    refunded NUMERIC NOT NULL,
    cancelled BOOLEAN NOT NULL,
    history BOOLEAN NOT NULL,
    channel TEXT,
    PRIMARY KEY (key)
) WITH (fillfactor = 80);
COMMENT ON COLUMN profile.orders.key IS 'normalised order id, or store/terminal/receipt';
COMMENT ON COLUMN profile.orders.node IS 'of the winning report; NULL: only refunds are known';
COMMENT ON COLUMN profile.orders.event IS 'the winning report';
COMMENT ON COLUMN profile.orders.at IS 'when it occurred';
COMMENT ON COLUMN profile.orders.first_learned_at IS 'learned-at of the first report from any source';
COMMENT ON COLUMN profile.orders.first_event IS 'the first report from a source that may state money';
COMMENT ON COLUMN profile.orders.total IS 'NULL: no source that may state money reported it';

CREATE TABLE profile.order_report (
    order_key TEXT COLLATE "C" NOT NULL,
    event UUID NOT NULL,
    node UUID NOT NULL,
    kind TEXT NOT NULL,
    trust SMALLINT NOT NULL,
    states_money BOOLEAN NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    history BOOLEAN NOT NULL,
    total NUMERIC,
    channel TEXT,
    PRIMARY KEY (order_key, event)
);
CREATE INDEX order_report_by_node ON profile.order_report (node);
COMMENT ON COLUMN profile.order_report.kind IS 'completed | updated | cancelled';

CREATE TABLE profile.order_line (
    event UUID NOT NULL,
    line INTEGER NOT NULL,
    order_key TEXT COLLATE "C" NOT NULL,
    product_id TEXT NOT NULL,
    folded_category TEXT COLLATE "C",
    quantity NUMERIC NOT NULL,
    price NUMERIC,
    product JSONB NOT NULL,
    PRIMARY KEY (event, line)
);
COMMENT ON COLUMN profile.order_line.event IS 'the report';
COMMENT ON COLUMN profile.order_line.folded_category IS 'case-folded by Python';

CREATE TABLE profile.refund (
    order_key TEXT COLLATE "C" NOT NULL,
    event UUID NOT NULL,
    node UUID NOT NULL,
    refund_key TEXT COLLATE "C" NOT NULL,
    trust SMALLINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    history BOOLEAN NOT NULL,
    amount NUMERIC,
    lines JSONB NOT NULL,
    PRIMARY KEY (order_key, event)
);
CREATE INDEX refund_by_node ON profile.refund (node);
COMMENT ON COLUMN profile.refund.refund_key IS 'the shop''s own refund id, or the event: two reports are one refund';
COMMENT ON COLUMN profile.refund.amount IS 'NULL: what the order says of the lines, without lines all of it';
COMMENT ON COLUMN profile.refund.lines IS '[{product_id, quantity, price}, …]';

CREATE TABLE profile.consent (
    node UUID NOT NULL,
    channel TEXT NOT NULL,
    topic TEXT NOT NULL,
    id UUID NOT NULL,
    origin UUID NOT NULL,
    state TEXT NOT NULL,
    trust SMALLINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    learned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    proof JSONB NOT NULL,
    PRIMARY KEY (node, channel, topic, id)
);
COMMENT ON COLUMN profile.consent.node IS 'the address';
COMMENT ON COLUMN profile.consent.topic IS '*: all';
COMMENT ON COLUMN profile.consent.id IS 'the event';
COMMENT ON COLUMN profile.consent.state IS 'requested | granted | confirmed | withdrawn | complained';
COMMENT ON COLUMN profile.consent.proof IS 'form, text_version, page, ip, method … as the event said';

CREATE TABLE profile.purged (
    hmac BYTEA NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (hmac)
);
COMMENT ON COLUMN profile.purged.hmac IS 'shared.erasure.digest of the purged address''s node';

CREATE TABLE profile.event_seen_0 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 0);
CREATE TABLE profile.event_seen_1 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 1);
CREATE TABLE profile.event_seen_2 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 2);
CREATE TABLE profile.event_seen_3 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 3);
CREATE TABLE profile.event_seen_4 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 4);
CREATE TABLE profile.event_seen_5 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 5);
CREATE TABLE profile.event_seen_6 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 6);
CREATE TABLE profile.event_seen_7 PARTITION OF profile.event_seen FOR VALUES WITH (MODULUS 8, REMAINDER 7);
ALTER TABLE profile.outbox ALTER COLUMN records SET STORAGE EXTERNAL;

CREATE VIEW cdp.node AS
    SELECT id, kind, value, folded, profile, first_seen, learned_at, asserted_at, confirmed_at,
           CASE WHEN confirmed_at IS NOT NULL THEN 'confirmed' WHEN asserted_at IS NOT NULL THEN 'asserted'
                ELSE 'claimed' END AS status
    FROM profile.node;

CREATE VIEW cdp.node_seen_before AS
    SELECT node, until, first_seen FROM profile.node_seen_before;

CREATE VIEW cdp.membership AS
    SELECT node, profile, from_at, to_at FROM profile.membership;

CREATE VIEW cdp.profile AS
    SELECT id, nodes, last_learned_at, first_seen, timezone, state FROM profile.profile;

CREATE VIEW cdp.profile_alias AS
    SELECT old, new, at FROM profile.profile_alias;

CREATE VIEW cdp.trait AS
    SELECT node, name, value, folded, number, trust, at, id, learned_at FROM profile.trait;

CREATE VIEW cdp.event AS
    SELECT id, node, name, type, occurred_at, received_at, learned_at, trust, history, source, properties, order_key,
           first, message_id, rest
    FROM profile.event;

CREATE VIEW cdp.order_entity AS
    SELECT key, node, event, at, first_learned_at, first_event, total, refunded, cancelled, history, channel
    FROM profile.orders;

CREATE VIEW cdp.order_report AS
    SELECT order_key, event, node, kind, trust, states_money, at, learned_at, history, total, channel
    FROM profile.order_report;

CREATE VIEW cdp.order_line AS
    SELECT event, order_key, line, product_id, folded_category, quantity, price, product FROM profile.order_line;

CREATE VIEW cdp.refund AS
    SELECT order_key, event, node, refund_key, trust, at, learned_at, history, amount, lines FROM profile.refund;

CREATE VIEW cdp.cart_operation AS
    SELECT node, at, id, kind, order_key, items, learned_at FROM profile.cart_op;

CREATE VIEW cdp.cart_op AS
    SELECT o.node, o.at, o.id, o.kind, o.order_key, i.product_id, i.quantity, i.price, i.product, o.learned_at
    FROM profile.cart_op o CROSS JOIN LATERAL
         jsonb_to_recordset(o.items) AS i(product_id text, quantity numeric, price numeric, product jsonb);

CREATE VIEW cdp.consent AS
    SELECT id, node, origin, channel, topic, state, at, learned_at, trust, proof FROM profile.consent;

CREATE VIEW cdp.purged AS
    SELECT hmac, at FROM profile.purged;
