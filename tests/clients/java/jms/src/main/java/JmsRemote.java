import jakarta.jms.BytesMessage;
import jakarta.jms.Connection;
import jakarta.jms.DeliveryMode;
import jakarta.jms.Destination;
import jakarta.jms.JMSException;
import jakarta.jms.Message;
import jakarta.jms.MessageConsumer;
import jakarta.jms.MessageProducer;
import jakarta.jms.Queue;
import jakarta.jms.QueueBrowser;
import jakarta.jms.Session;
import jakarta.jms.TextMessage;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Enumeration;
import java.util.HashMap;
import java.util.Map;
import java.util.stream.Collectors;
import org.apache.qpid.jms.JmsConnectionFactory;

/** Qpid JMS on strings: the steps of tests/clients/README.md. */
public final class JmsRemote extends Steps {
    /** Qpid JMS's own mode: each message is acknowledged alone. */
    private static final int INDIVIDUAL_ACKNOWLEDGE = 101;

    /** Values of the property that says how a message is acknowledged. */
    private static final Map<String, Integer> OUTCOMES =
            Map.of("accepted", 1, "rejected", 2, "released", 3);

    private final Map<String, MessageProducer> producers = new HashMap<>();
    private final Map<String, AutoCloseable> consumers = new HashMap<>();
    private final Map<String, Deque<Message>> drained = new HashMap<>();
    private Connection connection;
    private Session session;
    private volatile boolean failed;

    public static void main(String[] args) throws Exception {
        new JmsRemote().run();
    }

    @Override
    protected String[] library() {
        return new String[] {"org.apache.qpid", "qpid-jms-client"};
    }

    @Override
    protected String annotationsHidden() {
        return "the program settles with `JMS_AMQP_ACK_TYPE`, and JMS shows no message annotations,"
                + " so another client reads why the message died";
    }

    private static String url(Where where) throws Exception {
        StringBuilder options = new StringBuilder("?jms.connectTimeout=10000");
        if (where.prefetch() >= 0) {
            options.append("&jms.prefetchPolicy.all=").append(where.prefetch());
        }
        String nested = where.failover() == null ? "" : "failover.nested.";
        if (where.idleMs() > 0) {
            options.append("&").append(nested).append("amqp.idleTimeout=").append(where.idleMs());
        }
        if (where.failover() != null) {
            String each =
                    where.failover().stream()
                            .map(at -> "amqp://" + (at.contains(":") ? at : "127.0.0.1:" + at))
                            .collect(Collectors.joining(","));
            return "failover:(" + each + ")" + options + "&failover.maxReconnectDelay=1000";
        }
        if (where.ca() != null) {
            options.append("&transport.trustStoreLocation=").append(trustStore(where.ca()));
            options.append("&transport.trustStorePassword=").append(TRUST_PASSWORD);
            return "amqps://localhost:" + where.port() + options;
        }
        return "amqp://127.0.0.1:" + where.port() + options;
    }

    @Override
    protected void connect(Where where) throws Exception {
        failed = false;
        connection = new JmsConnectionFactory(url(where)).createConnection();
        connection.setExceptionListener(failure -> failed = true);
        connection.start();
        session = connection.createSession(false, INDIVIDUAL_ACKNOWLEDGE);
    }

    @Override
    protected String sender(String name, String to) throws JMSException {
        producers.put(name, session.createProducer(session.createQueue(to)));
        return to;
    }

    @Override
    protected String receiver(String name, String from, int credit, boolean copy)
            throws JMSException {
        Queue queue = from == null ? session.createTemporaryQueue() : session.createQueue(from);
        if (copy) {
            QueueBrowser browser = session.createBrowser(queue);
            consumers.put(name, browser::close);
            Deque<Message> shown = new ArrayDeque<>();
            Enumeration<?> messages = browser.getEnumeration();
            while (messages.hasMoreElements()) {
                shown.add((Message) messages.nextElement());
            }
            drained.put(name, shown);
        } else {
            consumers.put(name, session.createConsumer(queue));
        }
        return queue.getQueueName();
    }

    @Override
    protected String send(String name, Outgoing outgoing, long withinMs) throws JMSException {
        Message message;
        if (outgoing.text() != null) {
            message = session.createTextMessage(outgoing.text());
        } else {
            BytesMessage bytes = session.createBytesMessage();
            bytes.writeBytes(outgoing.body());
            message = bytes;
        }
        message.setJMSCorrelationID(outgoing.correlation());
        if (outgoing.replyTo() != null) {
            message.setJMSReplyTo(session.createQueue(outgoing.replyTo()));
        }
        MessageProducer producer = producers.get(name);
        producer.setDeliveryMode(
                outgoing.durable() ? DeliveryMode.PERSISTENT : DeliveryMode.NON_PERSISTENT);
        producer.setDeliveryDelay(outgoing.delayMs());
        // It returns when the broker has accepted, and throws whatever else it says.
        producer.send(message);
        return "accepted";
    }

    @Override
    protected Incoming next(String name, long withinMs) throws JMSException {
        Message message;
        if (drained.containsKey(name)) {
            message = drained.get(name).poll();
        } else {
            message = ((MessageConsumer) consumers.get(name)).receive(withinMs);
        }
        if (message == null) {
            return null;
        }
        Destination replyTo = message.getJMSReplyTo();
        String text = message instanceof TextMessage ? message.getBody(String.class) : null;
        return new Incoming(
                text,
                text == null ? message.getBody(byte[].class) : null,
                replyTo == null ? null : ((Queue) replyTo).getQueueName(),
                message.getJMSCorrelationID(),
                null,
                message);
    }

    @Override
    protected void settle(Object delivery, String outcome) throws JMSException {
        Message message = (Message) delivery;
        message.setIntProperty("JMS_AMQP_ACK_TYPE", OUTCOMES.get(outcome));
        message.acknowledge();
    }

    /** Without prefetch, a receive that does not wait gives credit for a message and drains. */
    @Override
    protected void drain(String name, int credit) throws JMSException {
        Deque<Message> messages = drained.computeIfAbsent(name, key -> new ArrayDeque<>());
        MessageConsumer consumer = (MessageConsumer) consumers.get(name);
        Message message = consumer.receiveNoWait();
        while (message != null) {
            messages.add(message);
            message = consumer.receiveNoWait();
        }
    }

    @Override
    protected void detach(String name) throws Exception {
        if (producers.containsKey(name)) {
            producers.remove(name).close();
        } else {
            consumers.remove(name).close();
            drained.remove(name);
        }
    }

    @Override
    protected void close() throws JMSException {
        if (connection != null) {
            connection.close();
            connection = null;
        }
        producers.clear();
        consumers.clear();
        drained.clear();
    }

    @Override
    protected boolean isOpen() {
        return !failed;
    }
}
