// Prints the vectors of texts by transformers.js, which reads onnx/model_quantized.onnx, as JSON.
// Its arguments are the package's file, a folder, and the texts.
import path from "node:path";
import { pathToFileURL } from "node:url";

const [library, folder, ...texts] = process.argv.slice(2);
const { AutoModel, AutoTokenizer, env } = await import(pathToFileURL(library));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModel.from_pretrained(name, { dtype: "q8" });
const { sentence_embedding } = await model(tokenizer(texts, { padding: true, truncation: true }));
console.log(JSON.stringify(sentence_embedding.tolist()));
