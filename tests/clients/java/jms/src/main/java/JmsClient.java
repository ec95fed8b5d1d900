import jakarta.jms.BytesMessage;
import jakarta.jms.Connection;
import jakarta.jms.ConnectionFactory;
import jakarta.jms.DeliveryMode;
import jakarta.jms.JMSException;
import jakarta.jms.MapMessage;
import jakarta.jms.Message;
import jakarta.jms.MessageConsumer;
import jakarta.jms.MessageProducer;
import jakarta.jms.ObjectMessage;
import jakarta.jms.Queue;
import jakarta.jms.QueueBrowser;
import jakarta.jms.Session;
import jakarta.jms.StreamMessage;
import jakarta.jms.TemporaryQueue;
import jakarta.jms.TextMessage;
import java.util.Arrays;
import java.util.Enumeration;
import org.apache.qpid.jms.JmsConnectionFactory;

/**
 * Sends or receives through Qpid JMS and prints one JSON object a line.
 *
 * <p>{@code send URL QUEUE COUNT} sends COUNT persistent messages of all five kinds in turn. {@code
 * receive URL QUEUE COUNT auto|client|recover} receives them: with {@code client} it acknowledges
 * every tenth and the last; with {@code recover} it takes COUNT, recovers the session without
 * acknowledging, and takes them again. {@code browse URL QUEUE} looks at all there is. {@code ask
 * URL QUEUE COUNT} sends requests with a temporary queue for the answers, and answers them itself
 * through a producer without a destination. {@code refuse URL QUEUE selector|topic} asks for what
 * the broker does not have, and prints how it is refused.
 */
public final class JmsClient {
    private static final long WITHIN_MS = 10_000;

    private JmsClient() {}

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new JmsConnectionFactory(args[1]);
        try (Connection connection = factory.createConnection()) {
            connection.start();
            switch (args[0]) {
                case "send":
                    send(connection, args[2], Integer.parseInt(args[3]));
                    break;
                case "receive":
                    receive(connection, args[2], Integer.parseInt(args[3]), args[4]);
                    break;
                case "browse":
                    browse(connection, args[2]);
                    break;
                case "ask":
                    ask(connection, args[2], Integer.parseInt(args[3]));
                    break;
                case "refuse":
                    refuse(connection, args[2], args[3]);
                    break;
                default:
                    throw new IllegalArgumentException(args[0]);
            }
        }
        System.out.println("{\"ev\":\"done\"}");
    }

    private static void send(Connection connection, String name, int count) throws JMSException {
        Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
        MessageProducer producer = session.createProducer(session.createQueue(name));
        producer.setDeliveryMode(DeliveryMode.PERSISTENT);
        for (int at = 0; at < count; at++) {
            Message message = make(session, at);
            message.setIntProperty("number", at);
            message.setStringProperty("text", "grüße " + at);
            message.setJMSCorrelationID("correlation-" + at);
            message.setJMSType("type-" + at % 5);
            producer.send(message);
            System.out.println("{\"ev\":\"accepted\",\"number\":" + at + "}");
        }
    }

    private static Message make(Session session, int at) throws JMSException {
        switch (at % 5) {
            case 0:
                return session.createTextMessage("text " + at);
            case 1:
                BytesMessage bytes = session.createBytesMessage();
                bytes.writeBytes(bytesOf(at));
                return bytes;
            case 2:
                MapMessage map = session.createMapMessage();
                map.setLong("number", at);
                map.setString("text", "map " + at);
                return map;
            case 3:
                StreamMessage stream = session.createStreamMessage();
                stream.writeInt(at);
                stream.writeString("stream " + at);
                return stream;
            default:
                return session.createObjectMessage("object " + at);
        }
    }

    private static byte[] bytesOf(int at) {
        byte[] bytes = new byte[at % 2 == 0 ? 10 : 70_000];
        Arrays.fill(bytes, (byte) at);
        return bytes;
    }

    private static void receive(Connection connection, String name, int count, String how)
            throws JMSException {
        boolean auto = how.equals("auto");
        Session session = connection.createSession(
                auto ? Session.AUTO_ACKNOWLEDGE : Session.CLIENT_ACKNOWLEDGE);
        MessageConsumer consumer = session.createConsumer(session.createQueue(name));
        int rounds = how.equals("recover") ? 2 : 1;
        for (int round = 0; round < rounds; round++) {
            if (round > 0) {
                session.recover();
            }
            for (int at = 0; at < count; at++) {
                Message message = consumer.receive(WITHIN_MS);
                if (message == null) {
                    throw new IllegalStateException("no message in time after " + at);
                }
                System.out.println(describe(message));
                boolean last = round == rounds - 1 && at == count - 1;
                if (!auto && (last || how.equals("client") && at % 10 == 9)) {
                    message.acknowledge();
                }
            }
        }
        consumer.close();
        session.close();
    }

    private static String describe(Message message) throws JMSException {
        int number = message.getIntProperty("number");
        return "{\"ev\":\"received\",\"number\":" + number
                + ",\"whole\":" + isWhole(message, number)
                + ",\"redelivered\":" + message.getJMSRedelivered()
                + ",\"count\":" + message.getIntProperty("JMSXDeliveryCount") + "}";
    }

    private static boolean isWhole(Message message, int number) throws JMSException {
        boolean named = ("grüße " + number).equals(message.getStringProperty("text"))
                && ("correlation-" + number).equals(message.getJMSCorrelationID())
                && ("type-" + number % 5).equals(message.getJMSType())
                && message.getJMSDeliveryMode() == DeliveryMode.PERSISTENT
                && message.getJMSDestination() instanceof Queue;
        return named && isBodyWhole(message, number);
    }

    private static boolean isBodyWhole(Message message, int number) throws JMSException {
        switch (number % 5) {
            case 0:
                return ((TextMessage) message).getText().equals("text " + number);
            case 1:
                BytesMessage bytes = (BytesMessage) message;
                byte[] body = new byte[(int) bytes.getBodyLength()];
                bytes.readBytes(body);
                return Arrays.equals(body, bytesOf(number));
            case 2:
                MapMessage map = (MapMessage) message;
                return map.getLong("number") == number
                        && map.getString("text").equals("map " + number);
            case 3:
                StreamMessage stream = (StreamMessage) message;
                return stream.readInt() == number
                        && stream.readString().equals("stream " + number);
            default:
                return ((ObjectMessage) message).getObject().equals("object " + number);
        }
    }

    private static void browse(Connection connection, String name) throws JMSException {
        Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
        QueueBrowser browser = session.createBrowser(session.createQueue(name));
        Enumeration<?> messages = browser.getEnumeration();
        while (messages.hasMoreElements()) {
            System.out.println(describe((Message) messages.nextElement()));
        }
        browser.close();
    }

    private static void ask(Connection connection, String name, int count) throws JMSException {
        Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
        Queue queue = session.createQueue(name);
        TemporaryQueue answers = session.createTemporaryQueue();
        MessageConsumer asked = session.createConsumer(queue);
        MessageConsumer answered = session.createConsumer(answers);
        MessageProducer anywhere = session.createProducer(null);
        for (int at = 0; at < count; at++) {
            Message question = session.createTextMessage("question " + at);
            question.setJMSReplyTo(answers);
            anywhere.send(queue, question);
            Message taken = asked.receive(WITHIN_MS);
            Message answer = session.createTextMessage("answer to " + taken.getBody(String.class));
            answer.setJMSCorrelationID(taken.getJMSMessageID());
            anywhere.send(taken.getJMSReplyTo(), answer);
            Message back = answered.receive(WITHIN_MS);
            boolean fits = back.getBody(String.class).equals("answer to question " + at)
                    && back.getJMSCorrelationID().equals(question.getJMSMessageID());
            System.out.println("{\"ev\":\"answered\",\"number\":" + at + ",\"fits\":" + fits + "}");
        }
        answered.close();
        answers.delete();
        System.out.println("{\"ev\":\"deleted\"}");
    }

    private static void refuse(Connection connection, String name, String what)
            throws JMSException {
        Session session = connection.createSession(Session.AUTO_ACKNOWLEDGE);
        try {
            if (what.equals("selector")) {
                session.createConsumer(session.createQueue(name), "number > 3");
            } else {
                session.createConsumer(session.createTopic(name));
            }
            System.out.println("{\"ev\":\"allowed\"}");
        } catch (JMSException refusal) {
            String why = refusal.getMessage().replace("\\", "\\\\").replace("\"", "'");
            System.out.println("{\"ev\":\"refused\",\"why\":\"" + why.replace("\n", " ") + "\"}");
        }
    }
}
